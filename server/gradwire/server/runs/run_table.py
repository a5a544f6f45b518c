"""Which runs there are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from gradwire.server.durability.run_storage import storage_of
from gradwire.server.durability.stored_runs import DamagedRun
from gradwire.server.engine.run import Run
from gradwire.wire.errors import RunAlreadyExists, RunDamaged, RunNotFound, shorten

MAX_PAGE = 1000


class RunTable:
    """Runs by name: those that can be served, and stored ones that cannot. `Registry` makes and deletes them.

    A run that has ended is noted when it is next asked for: its name, and what it held, are free from then on.
    """

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._damaged: dict[str, DamagedRun] = {}

    def get(self, name: str, uid: str = "") -> Run:
        """The run ``runs/NAME``. Raises RunNotFound, also when ``uid`` is that of another run, and RunDamaged."""
        run = self._runs.get(name)
        if run is not None and run.ended:
            self._note_end(name, run)
            if name not in self._damaged:
                run.require_alive()
            run = None
        if run is None:
            if name in self._damaged:
                raise RunDamaged(f"{name} is stored, but cannot be served: {self._damaged[name].why}", run=name)
            raise RunNotFound(f"there is no run {shorten(name)!r} on this server", run=shorten(name))
        if uid and uid != run.uid:
            raise RunNotFound(f"{name} is another run now: the one that was meant has been replaced", run=name)
        return run

    def __contains__(self, name: str) -> bool:
        """Whether there is such a run, also one that cannot be served."""
        return name in self._runs or name in self._damaged

    def existing(self, name: str, request_id: str) -> Run | None:
        """The run that the same creation request has made before, if it has."""
        run = self._living(name)
        return run if run is not None and run.request_id == request_id else None

    def runs(self) -> list[Run]:
        """All runs that can be served, by name."""
        return [self._runs[name] for name in sorted(self._runs) if not self._runs[name].ended]

    def living(self) -> list[Run]:
        """As `runs`, in no particular order; cheap, and any thread may ask."""
        return [run for run in list(self._runs.values()) if not run.ended]

    def names(self) -> list[str]:
        """Of all runs, those too that cannot be served."""
        return sorted({*self._runs, *self._damaged})

    def page(
        self, after: str, size: int, shown: Callable[[str], bool] = lambda name: True
    ) -> tuple[list[Run | DamagedRun], str]:
        """Up to ``size`` runs (0: a whole page) whose names follow ``after`` and are ``shown``, and the next page's
        ``after``."""
        for name, run in list(self._runs.items()):
            if run.ended:
                self._note_end(name, run)
        found: dict[str, Run | DamagedRun] = {**self._damaged, **self._runs}
        names = sorted(filter(shown, found))
        start = bisect_right(names, after)
        chosen = names[start : start + min(size or MAX_PAGE, MAX_PAGE)]
        more = start + len(chosen) < len(names)
        return [found[name] for name in chosen], chosen[-1] if more else ""

    @property
    def damaged_count(self) -> int:
        """Stored runs that cannot be served."""
        return len(self._damaged)

    def damaged(self) -> list[DamagedRun]:
        """Those, in no particular order; any thread may ask."""
        return list(self._damaged.values())

    def _living(self, name: str) -> Run | None:
        """The run of this name, unless it has ended: then its name, and what it held, are free."""
        run = self._runs.get(name)
        if run is not None and run.ended:
            self._note_end(name, run)
            run = None
        return run

    def _note_end(self, name: str, run: Run) -> None:
        del self._runs[name]
        if run.storage is not None:
            why = f"it {run.ended}; the next start of the server brings it back"
            storage = storage_of(run)
            self._damaged[name] = DamagedRun(name, run.uid, why, 0 if storage is None else storage.disk_bytes)

    def _require_free(self, name: str, replace: bool) -> None:
        run = self._living(name)
        if replace:
            return
        if run is not None:
            raise RunAlreadyExists(f"{name} exists already, at step {run.step}", run=name)
        if name in self._damaged:
            raise RunAlreadyExists(f"{name} exists already, but is damaged: {self._damaged[name].why}", run=name)
