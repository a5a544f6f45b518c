"""What ``train_workers.py`` shows: a table, and a picture of the losses and of who contributed to which round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from workers_crew import Training

COLORS = ("#edae49", "#66a182", "#2e4057", "#00798c", "#8d96a3")
EVENTFUL = "#d1495b"


def differences(losses: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """In units of one rounding of the loss (of 1, where it is below 1)."""
    found: npt.NDArray[np.float64] = (losses - reference) / (np.finfo(np.float32).eps * np.maximum(reference, 1))
    return found


def row(training: Training, reference: Training) -> str:
    """Of the table whose head is `HEAD`."""
    losses, rounds = training.losses, training.plan.rounds
    largest = np.abs(differences(losses, reference.losses)).max()
    same = f"{largest:>10.1f}" if training.events is None else f"{'':>10}"
    return (
        f"{training.plan.workers:>7} {losses[0]:>12.6f} {losses[-1]:>12.6f} {same} {training.accuracy:>9.2%} "
        f"{rounds / training.seconds:>9.0f}"
    )


HEAD = f"{'workers':>7} {'first loss':>12} {'last loss':>12} {'roundings':>10} {'accuracy':>9} {'rounds/s':>9}"


def who_contributed(training: Training) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Worker ids, and ``[workers, rounds]``: each one's share of each round, NaN where it had no part in it."""
    accepted = training.accepted
    ids = sorted({each.worker_id for each in accepted}, key=lambda worker_id: int(worker_id.removeprefix("rank-")))
    shares = np.full((len(ids), training.plan.rounds), np.nan)
    for each in accepted:
        shares[ids.index(each.worker_id), each.round - 1] = each.share
    return ids, shares


def draw(calm: Sequence[Training], eventful: Training, path: Path) -> None:
    """Raises ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    rounds = np.arange(1, eventful.plan.rounds + 1)
    for index, training in enumerate(calm):
        style = {"color": COLORS[index % len(COLORS)], "linewidth": max(7 - 2 * index, 1)}
        count = training.plan.workers
        above.plot(rounds, training.losses, label=f"{count} worker{'s' * (count > 1)}", **style)
    label = f"{eventful.plan.workers} workers, one killed, one joins late"
    above.plot(rounds, eventful.losses, color=EVENTFUL, linewidth=1, linestyle=(0, (3, 1.5)), label=label)
    above.set_yscale("log")
    largest = max(np.abs(differences(each.losses, calm[0].losses)).max() for each in calm)
    said = f"training loss of each round; where nobody dies it differs by {largest:.1f} roundings of float32 at most"
    above.set_title(said, loc="left", fontsize=10)
    above.legend(frameon=False, fontsize=9)
    above.grid(alpha=0.25)
    above.spines[["top", "right"]].set_visible(False)

    ids, shares = who_contributed(eventful)
    extent = (0.5, eventful.plan.rounds + 0.5, len(ids) - 0.5, -0.5)
    image = below.imshow(shares, aspect="auto", interpolation="nearest", cmap="viridis_r", extent=extent)
    below.set_yticks(range(len(ids)), ids, fontsize=8)
    below.set_xlabel("round")
    below.set_title("who contributed to which round, and with which share of its weight", loc="left", fontsize=10)
    events = eventful.events
    assert events is not None
    note = {"color": EVENTFUL, "fontsize": 9, "va": "center"}
    below.text(events.killed_after + 2, events.killed, "SIGKILL", **note)
    below.text(events.joins_after - 1, len(ids) - 1, "joins, and takes its place", ha="right", **note)
    figure.colorbar(image, ax=below, pad=0.01, label="share")
    figure.savefig(path)
