"""What the page shows, for a terminal: whoever asks for no HTML gets columns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from gradwire.server.access.identity import Identity
from gradwire.server.web.listing import Rows
from gradwire.wire.printable import printable

_COLUMNS = ("RUN", "STATE", "STEP", "STEPS/S", "WORKERS", "DURABILITY", "PARAMETERS", "LAST STEP")


def of_all(rows: Rows, who: Identity) -> str:
    """A line for each run that a caller may see. May take its time."""
    now = time.time()
    lines = [_COLUMNS, *(_cells(who.outside(row.name), row.facts, now) for row in rows.visible(who))]
    return _table(lines) if len(lines) > 1 else "there are no runs yet"


def of_one(name: str, facts: dict[str, Any], about: dict[str, Any], now: dict[str, Any]) -> str:
    """All that there is to know of a run but its curves.

    Args:
        facts: see `listing.facts_of`.
        about: see `details.about`.
        now: see `details.settings`, `details.workers` and `details.events`.
    """
    moment = time.time()
    parts = [_table([_COLUMNS, _cells(name, facts, moment)])]
    shapes = [(tensor["name"], "x".join(map(str, tensor["shape"])) or "scalar") for tensor in about["tensors"]]
    parts += _section("tensors", shapes, about["tensor_count"])
    groups = [
        (group["optimizer"], *(f"{key}={value}" for key, value in group.items() if key != "optimizer"))
        for group in now["groups"]
    ]
    parts += _section("groups", groups, now["group_count"])
    workers = [
        (worker["id"], f"sequence {worker['sequence']}", _taken(worker["blocks"]), _waits(worker))
        for worker in now["workers"]
    ]
    parts += _section("workers", workers, now["worker_count"])
    ways = [
        (direction, path.replace("_", " "), f"{count} bytes")
        for direction, paths in now["bytes"].items()
        for path, count in paths.items()
    ]
    parts += _section("values by streams, since the server began", ways, len(ways))
    if now["round"] is not None:
        outcomes = ", ".join(f"{count} {kind}" for kind, count in now["round"]["outcomes"].items())
        parts += ["", f"round {now['round']['number']}: {now['round']['waiting_for'] or 'none is open'}; {outcomes}"]
    snapshots = [
        (str(info["id"]), f"step {info['step']}", f"{info['size_bytes']} bytes", info["label"])
        for info in now["snapshots"]
    ]
    parts += _section("snapshots", snapshots, now["snapshot_count"])
    events = [
        (_ago(moment - event["seconds"]), f"step {event['step']}", event["kind"], f"{event['count']}x", event["text"])
        for event in reversed(now["events"])
    ]
    parts += _section("events", events, len(events))
    return "\n".join(parts)


def _cells(name: str, facts: dict[str, Any], now: float) -> Sequence[str]:
    if facts["state"] == "damaged":
        return (name, "damaged", facts["why"])
    progress = facts["progress"]
    return (
        name,
        facts["state"],
        str(facts["step"]),
        f"{facts['steps_per_second']:g}",
        str(facts["workers"]),
        facts["durability"],
        str(facts["parameters"]),
        "-" if progress is None else _ago(now - progress),
    )


def _taken(blocks: dict[str, Any] | None) -> str:
    return "" if blocks is None else f"{1e3 * blocks['p50']:.3g} ms a block"


def _waits(worker: dict[str, Any]) -> str:
    if "waits_for" not in worker:
        return ""
    return f"waits for {worker['waits_for']} since {worker['waits_seconds']:.0f} s"


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def _section(title: str, lines: Sequence[Sequence[str]], count: int) -> list[str]:
    if not lines:
        return []
    shown = f"{title} ({len(lines)} of {count})" if len(lines) < count else title
    return ["", shown, *(f"  {line}" for line in _table(lines).split("\n"))]


def _table(lines: Iterable[Sequence[str]]) -> str:
    """Aligned columns; what others have named is escaped."""
    cells = [[printable(cell) for cell in line] for line in lines]
    count = max(map(len, cells))
    widths = [max((len(line[place]) for line in cells if place < len(line) - 1), default=0) for place in range(count)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in cells
    )
