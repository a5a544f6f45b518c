"""The table of a long run, for ``docs/reliability.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.robustness.tally import Tally

BEGIN, END = "<!-- robustness: begin -->", "<!-- robustness: end -->"


def table(tally: Tally, about: Mapping[str, float]) -> str:
    """Markdown."""
    at_random = {"kill", "start", "drain", "term"}
    rows = [
        ("servers killed (SIGKILL)", tally.kills),
        ("... under traffic, at a random time", tally.ends["kill"]),
        ("... while starting", tally.ends["start"]),
        ("... while draining", tally.ends["drain"]),
        ("... at named points", sum(count for end, count in tally.ends.items() if end not in at_random)),
        ("named points, and fewest kills at one", _fewest(tally.ends, at_random)),
        ("... with shared runs on them, whose workers are killed too", tally.shared_kills),
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
            f"{about['seconds'] / 60:.0f} min in {about['parts']:.0f} parts, {about['episodes']:.0f} episodes",
        ),
    ]
    lines = [f"| {name} | {value:,} |" if isinstance(value, int) else f"| {name} | {value} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _fewest(ends: Counter[str], at_random: set[str]) -> str:
    points = {end: count for end, count in ends.items() if end not in at_random}
    return f"{len(points)} points, {min(points.values(), default=0)}"


def _list(counts: Counter[str], *, lower: bool = False) -> str:
    found = sorted(counts.items())
    return ", ".join(f"{name.lower() if lower else name} {count:,}" for name, count in found) or "none"


def write_into(document: Path, tally: Tally, about: Mapping[str, float]) -> None:
    """Replaces what stands between the markers."""
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n{table(tally, about)}\n{END}{after}")
