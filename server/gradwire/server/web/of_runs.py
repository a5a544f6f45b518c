"""What a scrape shows of each run, where that is wanted. A run that has gone has no series."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from gradwire.server.access.identity import Identity
from gradwire.server.durability.run_storage import storage_of
from gradwire.server.engine.run import Run
from gradwire.server.runs.registry import Registry


class _OfRuns(Metric):
    """One gauge, whose samples are made while they are written down: a hundred thousand of them at once would make
    Python look through all that there is for garbage, and nobody else would get to work meanwhile."""

    def __init__(self, name: str, about: str, samples: Callable[[], Iterator[Sample]]) -> None:
        super().__init__(name, about, "gauge")
        self.samples = _Made(samples)  # type: ignore[assignment]


class _Made:
    """What can be iterated over."""

    def __init__(self, make: Callable[[], Iterator[Sample]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Sample]:
        return self._make()


def of_runs(registry: Registry, who: Identity) -> Iterator[Metric]:
    """Families with the label ``run``, of the runs that ``who`` may see, by the names that it knows."""
    runs = [run for run in registry.living() if who.sees(run.spec.name)]
    names = [who.outside(run.spec.name) for run in runs]

    def family(name: str, about: str, value: Callable[[Run], float | None]) -> Metric:
        def samples() -> Iterator[Sample]:
            for run, label in zip(runs, names, strict=True):
                if (found := value(run)) is not None:
                    yield Sample(f"gradwire_run_{name}", {"run": label}, found)

        return _OfRuns(f"gradwire_run_{name}", about, samples)

    yield family("step", "Steps that have been applied.", lambda run: run.step)
    yield family("workers", "Workers that are attached.", lambda run: run.attached_workers)
    yield family("memory_bytes", "What is set aside for its values.", lambda run: run.spec.memory_bytes)
    yield family("disk_bytes", "What it takes of the disk, or may any time.", _disk_bytes)
    since = time.time() - time.perf_counter()
    about = "When a block was applied last, in seconds since 1970; not there if none was since the server began."
    yield family("last_block_timestamp_seconds", about, lambda run: _last_block(run, since))


def _last_block(run: Run, since: float) -> float | None:
    applied_at = run.activity.applied_at
    return since + applied_at if applied_at else None


def _disk_bytes(run: Run) -> int:
    storage = storage_of(run)
    return 0 if storage is None else storage.disk_bytes
