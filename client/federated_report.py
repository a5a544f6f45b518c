"""What ``train_federated.py`` shows: tables, and a picture of the accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

Accuracies = npt.NDArray[np.float64]
"""``[seeds, rounds]``: share of the held-out pictures that are recognized after each round."""

COLORS = {"FedAvg": "#edae49", "FedAMSGrad": "#00798c"}
LAST = 20
INTERESTING = 0.7
"""Both soon recognize more than that; the picture begins there, so that the end can be seen."""


def last_rounds(accuracies: Accuracies) -> float:
    """The mean of the last rounds: a single one says little, for who takes part is chance."""
    return float(accuracies[:, -LAST:].mean())


def rounds_until(accuracies: Accuracies, level: float) -> str:
    """After how many rounds the mean over the seeds first reaches a level, in words."""
    reached = np.flatnonzero(accuracies.mean(0) >= level)
    return str(reached[0] + 1) if len(reached) else "never"


def table(found: Mapping[str, Accuracies]) -> str:
    """One line for each optimizer."""
    lines = [f"{'':<12} {'last rounds':>12} {'of each split':>18} {'to 80%':>7} {'to 90%':>7}"]
    for name, accuracies in found.items():
        levels = [f"{rounds_until(accuracies, level):>7}" for level in (0.8, 0.9)]
        each = accuracies[:, -LAST:].mean(1)
        span = f"{each.min():.2%} - {each.max():.2%}"
        lines.append(f"{name:<12} {last_rounds(accuracies):>12.2%} {span:>18} {' '.join(levels)}")
    return "\n".join(lines)


def draw(found: Mapping[str, Accuracies], labels: Mapping[str, str], title: str, path: Path) -> None:
    """The mean over the seeds, and from the worst of them to the best. Raises ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, accuracies in found.items():
        rounds = np.arange(1, accuracies.shape[1] + 1)
        color = COLORS[name]
        axes.fill_between(rounds, accuracies.min(0), accuracies.max(0), color=color, alpha=0.2, linewidth=0)
        axes.plot(rounds, accuracies.mean(0), color=color, linewidth=1.6, label=labels[name])
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("round")
    axes.set_ylim(top=1.0)
    if all(last_rounds(accuracies) > INTERESTING for accuracies in found.values()):
        axes.set_ylim(bottom=INTERESTING)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
