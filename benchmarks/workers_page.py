"""The section of docs/workers.md that `workers.py` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import closing_cost, teams
from benchmarks.measure import table

if TYPE_CHECKING:
    from benchmarks.workers import Result

PAGE = Path(__file__).resolve().parents[1] / "docs" / "workers.md"
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"


def section(
    results: Sequence[Result], crowd: Result, closings: Sequence[closing_cost.Result], about: str, settings: str
) -> str:
    """Markdown."""
    header = ("rounds/s", *(result.label for result in results))
    names = list(dict.fromkeys(name for result in results for name in result.timings))
    rates = [[name, *(_rate(result, name) for result in results)] for name in names]
    ratios = [[name, *(_ratio(result, name) for result in results)] for name in names if name != teams.OURS]
    parts = [
        "## How fast",
        "Made by `python benchmarks/workers.py --docs`; every figure is of that one run. A column is workers x float32 "
        f"parameters; each worker is a process. {settings}.",
        f"{about}.",
        "Rounds/s, medians with the middle half of the windows:",
        table(header, rates),
        f"Time of a round of {teams.OURS} over theirs (medians over the windows; below 1: ours is faster):",
        table(("ours / theirs", *header[1:]), ratios),
        f"Closing a round of {closings[0].elements:,} parameters, alone:",
        table(closing_cost.HEADER, [row for closing in closings for row in closing.rows()]),
        "\n".join([*_targets(results), *_closing_targets(closings), *_notes([*results, crowd])]),
        f"- {crowd.label}, threads: {_rate(crowd, teams.OURS)} rounds/s",
    ]
    return "\n\n".join(parts[:-2]) + f"\n\n{parts[-2]}\n{parts[-1]}\n"


def write(text: str, page: Path = PAGE) -> None:
    """Puts the section in the place of the last one, or at the end of the page."""
    found = page.read_text()
    before, _, rest = found.partition(BEGIN)
    _, _, after = rest.partition(END)
    before = before if rest else f"{found.rstrip()}\n\n"
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after or chr(10)}")


def _rate(result: Result, name: str) -> str:
    return result.timings[name].rate(1) if name in result.timings else ""


def _ratio(result: Result, name: str) -> str:
    if name not in result.timings or teams.OURS not in result.timings:
        return ""
    return f"{result.timings[teams.OURS].ratio(result.timings[name]):.2f}"


def _targets(results: Sequence[Result]) -> list[str]:
    from benchmarks.workers import GLOO_CASES, GLOO_TARGET

    lines = []
    for result in results:
        ours = result.timings[teams.OURS]
        peers = {name: ours.ratio(result.timings[name]) for name in (teams.RAY, teams.FLOWER) if name in result.timings}
        if peers:
            said = ", ".join(f"{ratio:.2f} of the time of {name}" for name, ratio in peers.items())
            lines.append(f"- {result.label}: {said} (target: below 1: {_met(all(r < 1 for r in peers.values()))})")
        if teams.RAY in result.timings and teams.IN_SHARED_MEMORY in result.timings:
            ratio = result.timings[teams.IN_SHARED_MEMORY].ratio(result.timings[teams.RAY])
            lines.append(
                f"- {result.label}: {ratio:.2f} of the time of {teams.RAY} with parameters in shared memory, where "
                f"Ray's workers have theirs (target: below 1: {_met(ratio < 1)})"
            )
        if teams.GLOO in result.timings:
            ratio = ours.ratio(result.timings[teams.GLOO])
            target = f" (target {GLOO_TARGET}: {_met(ratio <= GLOO_TARGET)})" if result.case in GLOO_CASES else ""
            lines.append(f"- {result.label}: {ratio:.2f} times gloo's{target}")
    return lines


def _closing_targets(closings: Sequence[closing_cost.Result]) -> list[str]:
    return [
        f"- closing a round of {each.workers}: {each.ratio:.2f} times the floor (target {closing_cost.TARGET}: "
        f"{_met(each.on_target)})"
        for each in closings
    ]


def _notes(results: Sequence[Result]) -> list[str]:
    lines = []
    for result in results:
        worst = max(result.differences, key=lambda name: result.differences[name])
        verdict = "same numbers" if result.same else "DIFFERENT NUMBERS"
        lines.append(
            f"- {result.label}: largest difference of any worker's parameters to Adam's in float64: "
            f"{result.differences[worst]:.1e} ({worst}): {verdict}"
        )
    skipped = {f"{result.label}: {name}": why for result in results for name, why in result.skipped.items()}
    return lines + [f"- {which} was not measured: {why}" for which, why in skipped.items()]


def _met(verdict: bool) -> str:
    return "met" if verdict else "MISSED"
