"""All runs as a list shows them, looked at once for all who watch: whoever has seen some is told what is new."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gradwire.server.access.identity import Identity
from gradwire.server.durability.run_storage import storage_of
from gradwire.server.durability.stored_runs import DamagedRun
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import Durability
from gradwire.server.optimizers.known import name_of
from gradwire.server.runs.registry import Registry
from gradwire.server.series.run_series import RunSeries
from gradwire.server.web.answers import to_json
from gradwire.server.web.aside import Aside
from gradwire.wire.series import GRADIENT_NORM, name_error

SPARK_POINTS = 32
"""Of a series in a list."""

_SPARK_SERIES = ("loss", "train_loss", "train/loss")
"""What is shown small, if a run has it; else the first series that its workers log, else the gradient norm."""

_ROWS_AT_ONCE = 500

MAX_GONE = 1024
"""Runs that are no more, of which those are told who have seen them."""

_FRESH_SECONDS = 0.5
"""A list that is not older is not made anew."""


class Row(NamedTuple):
    """One run."""

    name: str
    """Inside the server."""
    version: int
    """Of the list in which it came to be as it is."""
    mark: object
    """Is another one as soon as anything that is shown is."""
    facts: dict[str, Any]
    """What is shown, without the name."""
    text: str
    """The same as JSON, an object."""

    def shown(self, name: str) -> str:
        """An object with the name that a caller knows the run by."""
        return f'{{"name":{to_json(name)},{self.text[1:]}'


class Rows(NamedTuple):
    """The list at one moment. Nothing of it changes."""

    version: int
    rows: dict[str, Row]
    """By name inside, in its order."""
    gone: tuple[tuple[int, str], ...] = ()
    """The version of the list from which on a name is not there, of those that were last; the oldest first."""
    complete_since: int = 0
    """What has gone before this version may be missing in ``gone``."""

    def visible(self, who: Identity) -> list[Row]:
        """Those that a caller may see."""
        return [row for name, row in self.rows.items() if who.sees(name)]

    def news(self, who: Identity, since: int = 0) -> Iterator[str]:
        """What a caller is told who has seen the list of version ``since`` (0: none), as JSON objects, to be taken one
        after another; none: nothing is new. May take its time, and makes no long text at once, which would keep the
        interpreter from everybody."""
        whole = since < max(1, self.complete_since)
        rows = [row for row in self.visible(who) if whole or row.version > since]
        lost = () if whole else [name for version, name in self.gone if version > since and name not in self.rows]
        gone = [who.outside(name) for name in lost if who.sees(name)]
        for start in range(0, max(len(rows), bool(gone or whole)), _ROWS_AT_ONCE):
            shown = ",".join([row.shown(who.outside(row.name)) for row in rows[start : start + _ROWS_AT_ONCE]])
            yield f'{{"whole":{to_json(whole and not start)},"rows":[{shown}],"gone":{to_json(gone)}}}'


EMPTY = Rows(0, {})


class Listing:
    """Of one server. To be used on the event loop; it looks in a thread.

    Args:
        aside: where it looks.
        clock: monotonic, in seconds.
    """

    def __init__(self, registry: Registry, aside: Aside, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._aside = aside
        self._clock = clock
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self.now = EMPTY
        self._spent: list[Rows] = []
        """The one before, for the next look to free: nobody has it any more by then, as far as that can be seen to."""

    async def look(self) -> Rows:
        """The list as it is now, or was a moment ago."""
        async with self._looking:
            if self._clock() - self._looked_at >= _FRESH_SECONDS:
                found = await self._aside.run(_renewed, self._registry, self.now, self._spent)
                self._spent.append(self.now)
                self.now = found
                self._looked_at = self._clock()
        return self.now


def _let_go(spent: list[Rows]) -> None:
    """Frees lists bit by bit: ten thousand rows at once take milliseconds, during which nobody else gets to work."""
    rows = [row for each in spent for row in each.rows.values()]
    spent.clear()
    while rows:
        del rows[-_ROWS_AT_ONCE:]


def _renewed(registry: Registry, before: Rows, spent: list[Rows]) -> Rows:
    _let_go(spent)
    version = before.version + 1
    found: dict[str, Run | DamagedRun] = {damaged.name: damaged for damaged in registry.damaged()}
    found |= {run.spec.name: run for run in registry.living()}
    rows = {}
    for name in sorted(found):
        each = found[name]
        old = before.rows.get(name)
        mark = each if isinstance(each, DamagedRun) else _mark(each)
        if old is not None and old.mark == mark:
            rows[name] = old
        else:
            facts = _damaged(each) if isinstance(each, DamagedRun) else facts_of(each)
            rows[name] = Row(name, version, mark, facts, to_json(facts))
    gone = [*before.gone, *((version, name) for name in before.rows if name not in rows)]
    complete_since = gone[-MAX_GONE - 1][0] if len(gone) > MAX_GONE else before.complete_since
    return Rows(version, rows, tuple(gone[-MAX_GONE:]), complete_since)


def _mark(run: Run) -> object:
    """Cheap, since nearly all of many runs do not move."""
    storage, activity = storage_of(run), run.activity
    return (
        run.uid,
        run.version,
        run.step,
        activity.applied_at,
        activity.steps_per_second > 0,
        run.attached_workers,
        run.events.last_number,
        run.series.version,
        0 if storage is None else storage.disk_bytes,
    )


def _damaged(run: DamagedRun) -> dict[str, Any]:
    return {"uid": run.uid, "state": "damaged", "why": run.why, "disk_bytes": run.disk_bytes}


def facts_of(run: Run) -> dict[str, Any]:
    """What a list says of a run. Any thread may ask."""
    spec, storage, activity, workers = run.spec, storage_of(run), run.activity, run.attached_workers
    rate = activity.steps_per_second
    state = "training" if rate else "waiting" if workers else "idle"
    return {
        "uid": run.uid,
        "state": state,
        "step": run.step,
        "steps_per_second": float(f"{rate:.3g}"),
        "workers": workers,
        "shared": spec.shared is not None,
        "optimizer": optimizer_of(run),
        "durability": (spec.durability or Durability.MEMORY).name.lower(),
        "parameters": spec.layout.elements,
        "memory_bytes": spec.memory_bytes,
        "disk_bytes": 0 if storage is None else storage.disk_bytes,
        "progress": round(time.time() - idle) if (idle := activity.idle_seconds) is not None else None,
        "events": run.events.last_number,
        "spark": spark_of(run.series),
    }


def optimizer_of(run: Run) -> str:
    """By the name in the contract; of several, that of the first group with a sign that there are others."""
    kinds = {type(group): name_of(group) for group in run.groups}
    first = name_of(run.groups[0])
    if first == "adam" and getattr(run.groups[0], "amsgrad", False):
        first = "amsgrad"
    return first if len(kinds) == 1 else f"{first}, ..."


def spark_of(series: RunSeries) -> dict[str, Any] | None:
    """A few points of the series that says most of a run; None: it has none."""
    names = series.names()
    if not names:
        return None
    logged = [name for name in names if not name_error(name)]
    preferred = next((name for name in _SPARK_SERIES if name in names), None)
    name = preferred or (logged[0] if logged else GRADIENT_NORM if GRADIENT_NORM in names else names[0])
    part = series.read(name, resolution=SPARK_POINTS)
    if part is None:
        return None
    return {"name": name, "values": [float(f"{value:.4g}") for value in (part.total / part.count).tolist()]}
