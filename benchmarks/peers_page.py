"""The page and the picture of `peers.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import contenders
from benchmarks.measure import table, three_digits

if TYPE_CHECKING:
    from benchmarks.peers import Result

ECHO = "raw gRPC echo"
HOME = (contenders.LOCAL, "local torch, default")
"""Those who do not send anything."""


def page(results: Sequence[Result], about: str, settings: str) -> str:
    """Markdown."""
    header = ("one step, ms", *(result.label for result in results))
    parts = [
        "# Against peers",
        "Made by `python benchmarks/peers.py`; every figure is of that one run. A column is a number of float32 "
        "parameters, in one tensor if nothing else is said. " + settings + ".",
        about + ".",
        "Medians, with the middle half of the rounds:",
        table(header, _rows(results, _cell)),
        f"The same as multiples of the {ECHO} of the same bytes (medians over the rounds of the ratio):",
        table(("x echo", *header[1:]), _rows(results, _ratio_cell)),
        "\n".join([*_faster(results), *_notes(results)]),
    ]
    return "\n\n".join(parts) + "\n"


def _names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.timings))


def _rows(results: Sequence[Result], cell: Callable[[Result, str], str]) -> list[list[str]]:
    return [
        [name, *(cell(result, name) if name in result.timings else "" for result in results)]
        for name in _names(results)
    ]


def _cell(result: Result, name: str) -> str:
    return result.timings[name].milliseconds().replace(" ms", "")


def _ratio_cell(result: Result, name: str) -> str:
    return three_digits(result.timings[name].ratio(result.timings[ECHO]))


def _faster(results: Sequence[Result]) -> list[str]:
    """For each size who sends and is faster than the best of ours."""
    lines = []
    for result in results:
        ours = [name for name in contenders.OURS if name in result.timings]
        if not ours:
            continue
        best = min(ours, key=lambda name: result.timings[name].median)
        ratios = {
            name: result.timings[name].ratio(result.timings[best])
            for name in contenders.PEERS
            if name in result.timings and name not in HOME
        }
        faster = [f"{name} ({ratio:.2f} of its time)" for name, ratio in ratios.items() if ratio < 1]
        lines.append(f"- {result.label}: faster than {best}: {', '.join(faster) or 'no peer'}")
    return lines


def _notes(results: Sequence[Result]) -> list[str]:
    lines = [f"- {result.label}: the fastest echo: {result.echo_way}" for result in results]
    for result in results:
        worst = max(result.differences, key=lambda name: result.differences[name], default=None)
        if worst is not None:
            verdict = "same numbers" if result.same else "DIFFERENT NUMBERS"
            lines.append(
                f"- {result.label}: largest difference of the parameters to local torch's: "
                f"{result.differences[worst]:.1e} ({worst}): {verdict}"
            )
    skipped = {name: reason for result in results for name, reason in result.skipped.items()}
    return lines + [f"- {name} was not measured: {reason}" for name, reason in skipped.items()]


def picture(results: Sequence[Result], path: Path) -> None:
    """One panel a size: bars of the medians, their ends the middle half; ours dark, floors light."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = _names(results)
    figure, axes = plt.subplots(1, len(results), figsize=(2.2 + 2.3 * len(results), 4.6), sharey=True, squeeze=False)
    for axis, result in zip(axes[0], results, strict=True):
        for place, name in enumerate(names):
            if name not in result.timings:
                continue
            timing = result.timings[name]
            low, high = timing.quartiles
            peer = name in contenders.PEERS
            color = "#1b6ca8" if name in contenders.OURS else "#d98f3e" if peer else "#bbbbbb"
            spread = [[1e3 * (timing.median - low)], [1e3 * (high - timing.median)]]
            axis.barh(place, 1e3 * timing.median, color=color, xerr=spread, ecolor="#333333")
        axis.set_xscale("log")
        axis.set_title(result.label, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0][0].invert_yaxis()
    figure.supxlabel("ms a step (logarithmic); blue: gradwire, orange: peers, grey: floors", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
