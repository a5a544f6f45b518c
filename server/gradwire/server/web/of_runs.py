"""What a scrape shows of each run, where that is wanted. A run that has gone has no series."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric

from gradwire.server.access.identity import Identity
from gradwire.server.durability.run_storage import storage_of
from gradwire.server.engine.run import Run
from gradwire.server.runs.registry import Registry
from gradwire.server.web.families import gauges


def of_runs(registry: Registry, who: Identity) -> Iterator[Metric]:
    """Families with the label ``run``, of the runs that ``who`` may see, by the names that it knows."""
    shown = [(run, [who.outside(run.spec.name)]) for run in registry.living() if who.sees(run.spec.name)]

    def family(name: str, about: str, value: Callable[[Run], float | None]) -> Metric:
        found = ((label, value(run)) for run, label in shown)
        return gauges(f"gradwire_run_{name}", about, ["run"], ((at, is_) for at, is_ in found if is_ is not None))

    yield family("step", "Steps that have been applied.", lambda run: run.step)
    yield family("workers", "Workers that are attached.", lambda run: 0 if run.holder is None else 1)
    yield family("memory_bytes", "What is set aside for its values.", lambda run: run.spec.memory_bytes)
    yield family("disk_bytes", "What it takes of the disk, or may any time.", _disk_bytes)
    about = "When a block was applied last, in seconds since 1970; not there if none was since the server began."
    yield family("last_block_timestamp_seconds", about, lambda run: run.applied_at or None)


def _disk_bytes(run: Run) -> int:
    storage = storage_of(run)
    return 0 if storage is None else storage.disk_bytes
