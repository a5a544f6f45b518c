"""The tables of long runs, for ``docs/reliability.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.robustness.tally import LongRun


def table(run: LongRun) -> str:
    """Markdown. What did not happen has no row."""
    tally = run.tally
    points = {end: count for end, count in tally.ends.items() if end not in ("kill", "start", "drain", "term")}
    rows: list[tuple[str, int | str]] = [
        ("servers killed (SIGKILL)", tally.kills),
        ("... under traffic, at a random time", tally.ends["kill"]),
        ("... while starting", tally.ends["start"]),
        ("... while draining", tally.ends["drain"]),
        ("... at named points", sum(points.values())),
        ("named points, and fewest kills at one", _fewest(points)),
        ("kills that lost all that was not flushed", tally.losses["unflushed"]),
        ("kills that lost a random part of it", tally.losses["some"]),
        ("times that all connections were cut", tally.cuts),
        ("... connections, altogether", tally.cut_connections),
        ("other faults", _list(tally.troubles)),
        ("files damaged", _list(tally.damages)),
        ("... after which a start, or a run, was refused", tally.refused),
        ("operations acknowledged", tally.acknowledged),
        ("... to clients on the server's host, by a lane", tally.by_lane),
        ("operations whose outcome the client was not told", tally.unknown),
        ("times a SNAPSHOT or damaged run went back, and said so", tally.rolled_back),
        ("clients that vanished and came back", tally.client_restarts),
        ("rounds of shared runs", tally.rounds),
        ("... what their workers were told of contributions", _list(tally.outcomes, lower=True)),
        ("... answers whose parameters were compared, bit for bit", tally.compared),
        ("... what happened to these workers", _list(tally.workers)),
        ("runs compared with their history, bit for bit", tally.checks),
        (
            "wall time",
            f"{run.seconds / 60:.0f} min in {run.parts} part{'s' * (run.parts > 1)}, {run.episodes} episodes",
        ),
    ]
    rows = [(name, f"{value:,}" if isinstance(value, int) else value) for name, value in rows if value]
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _fewest(points: Mapping[str, int]) -> str:
    return f"{len(points)} points, {min(points.values())}" if points else ""


def _list(counts: Counter[str], *, lower: bool = False) -> str:
    found = sorted(counts.items())
    return ", ".join(f"{name.lower() if lower else name} {count:,}" for name, count in found)


def write_into(document: Path, kind: str, run: LongRun) -> None:
    """Replaces what stands between the markers of this kind of run."""
    begin, end = f"<!-- {kind}: begin -->", f"<!-- {kind}: end -->"
    before, _, rest = document.read_text().partition(begin)
    _, _, after = rest.partition(end)
    document.write_text(f"{before}{begin}\n{table(run)}\n{end}{after}")
