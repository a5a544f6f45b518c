"""Runs as lines for people, and as objects for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from gradwire.server.cli.calls import Stub
from gradwire.v1 import run_pb2, service_pb2
from gradwire.wire.printable import printable

COLUMNS = ("name", "state", "step", "steps/s", "workers", "size", "durability", "progress", "waits for")
"""Of a `Row`."""

SHRINKS = {"waits for": 12, "name": 12, "workers": 7, "durability": 5, "size": 5}
"""Those that are cut where there is no room, the first one first, and what they keep."""

NOTHING = "-"
"""Where there is nothing to be said."""

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_TIMES = ((86_400, "d"), (3600, "h"), (60, "min"))


class Row(NamedTuple):
    """One run in words, by `COLUMNS`; nothing in it that a terminal would obey."""

    name: str
    state: str
    step: str = NOTHING
    steps_per_second: str = NOTHING
    workers: str = NOTHING
    """The id of the only one, or how many there are."""
    size: str = NOTHING
    durability: str = NOTHING
    progress: str = NOTHING
    waits_for: str = NOTHING


def summaries(stub: Stub, name: str = "") -> Iterator[service_pb2.RunSummary]:
    """All runs that the caller may see, by name.

    Args:
        name: only this one; a resource name.
    """
    token = ""
    while True:
        page = stub.ListRuns(service_pb2.ListRunsRequest(page_token=token, name=name))
        alone = len(page.runs) == 1
        for run in page.runs:  # an older server shows all of them, and each one's own tenant without its name
            if not name or run.name == name or (alone and name.endswith(f"/{run.name}")):
                yield run
        token = page.next_page_token
        if not token:
            return


def state_of(run: service_pb2.RunSummary) -> str:
    """``damaged``, ``idle``: nobody is attached; ``running``: steps are applied; ``waiting``: none is now;
    ``attached``: none has been yet, or the server is too old to say."""
    if run.damage:
        return "damaged"
    if not run.attached_workers and not run.attached_worker_id:
        return "idle"
    if run.steps_per_second > 0:
        return "running"
    return "waiting" if run.HasField("idle_seconds") else "attached"


def row_of(run: service_pb2.RunSummary) -> Row:
    """For people."""
    state = state_of(run)
    if state == "damaged":
        return Row(name=printable(own_name(run)), state=state, waits_for=printable(run.damage))
    wait = f"{run.wait.text}, for {duration(run.wait.seconds)}" if run.HasField("wait") else NOTHING
    return Row(
        name=printable(own_name(run)),
        state=state,
        step=f"{run.step}",
        steps_per_second=rate(run.steps_per_second),
        workers=printable(run.attached_worker_id) or f"{run.attached_workers or NOTHING}",
        size=f"{short(run.elements)} {dtype_name(run)}",
        durability=durability_name(run.durability),
        progress=f"{duration(run.idle_seconds)} ago" if run.HasField("idle_seconds") else NOTHING,
        waits_for=printable(wait),
    )


def data_of(run: service_pb2.RunSummary) -> dict[str, Any]:
    """For programs. Keys are added, and neither change nor go; what is not known is null."""
    waits, moved = run.HasField("wait"), run.HasField("idle_seconds")
    known = None if run.damage else run
    return {
        "name": own_name(run),
        "state": state_of(run),
        "damage": run.damage or None,
        "step": known and run.step,
        "steps_per_second": known and run.steps_per_second,
        "idle_seconds": run.idle_seconds if moved else None,
        "workers": known and (run.attached_workers or int(bool(run.attached_worker_id))),
        "worker_id": run.attached_worker_id or None,
        "elements": known and run.elements,
        "dtype": known and dtype_name(run),
        "durability": known and durability_name(run.durability),
        "waits_for": run.wait.text if waits else None,
        "waits_seconds": run.wait.seconds if waits else None,
    }


def own_name(run: service_pb2.RunSummary) -> str:
    """As users write it."""
    return run.name.removeprefix("runs/")


def dtype_name(run: service_pb2.RunSummary) -> str:
    return run_pb2.Dtype.Name(run.dtype).removeprefix("DTYPE_").lower()


def durability_name(value: run_pb2.Durability.ValueType) -> str:
    return run_pb2.Durability.Name(value).removeprefix("DURABILITY_")


def short(count: float) -> str:
    """Three digits of it, as in 25.6M."""
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.3g}{unit}" if count < 999.5 * size else f"{count / size:.0f}{unit}"
    return f"{count:.3g}" if count < 999.5 else f"{count:.0f}"


def rate(per_second: float) -> str:
    """`NOTHING`: nothing moves."""
    return short(per_second) if per_second > 0 else NOTHING


def duration(seconds: float) -> str:
    """In one unit, as in 14 s."""
    for size, unit in _TIMES:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
