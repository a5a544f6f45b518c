"""What the synthetic experiment shows: progress, a table, ``summary.json``, ``regret.csv`` and ``regret.png``."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

RECORD_EVERY = 1000
CURVE_POINTS = 600
PERIOD = 101


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    optimizer: str
    schedule: str
    variant: str
    steps: int
    x: float
    average_regret: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "steps_per_second": self.steps_per_second}

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.seconds


class Track:
    """Regret so far, and what is kept of it. Sums run step by step, so blocks of any size give the same bits."""

    def __init__(self, optimizer: str, schedule: str, total_steps: int) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.steps = 0
        self.x = 0.0
        self.regret = 0.0
        self.rows: list[tuple[int, float, float, float]] = []
        """(step, x before it, loss, average regret) of every 1,000th step, counted from 1."""
        self.curve: list[tuple[int, float, float, float]] = []
        """The same at steps that lie evenly on a logarithmic axis, at the same point of the problem's period."""
        self._told = (0, 0)
        steps = np.geomspace(1, total_steps, CURVE_POINTS).astype(np.int64)
        self._curve_steps = np.unique(np.where(steps > PERIOD, steps - steps % PERIOD, steps))
        self._on_curve = frozenset(self._curve_steps.tolist())

    def news(self) -> dict[str, Any]:
        """The sums, and what has been kept since the last call."""
        rows, curve = self.rows[self._told[0] :], self.curve[self._told[1] :]
        self._told = (len(self.rows), len(self.curve))
        return {"steps": self.steps, "x": self.x, "regret": self.regret, "rows": rows, "curve": curve}

    def restore(self, news: dict[str, Any]) -> None:
        """Takes over what `news` of an earlier process has told, call by call."""
        self.steps, self.x, self.regret = news["steps"], news["x"], news["regret"]
        self.rows += [tuple(row) for row in news["rows"]]
        self.curve += [tuple(row) for row in news["curve"]]
        self._told = (len(self.rows), len(self.curve))

    @property
    def average_regret(self) -> float:
        return self.regret / max(self.steps, 1)

    def add(self, before: npt.NDArray[np.float32], gradient: npt.NDArray[np.float32], x: float) -> None:
        """Counts steps: x before each, the slope of each f_t, and x after the last one."""
        loss = gradient.astype(np.float64) * (before.astype(np.float64) + 1.0)  # f_t(x) - f_t(-1)
        sums = loss.copy()
        sums[0] += self.regret
        np.cumsum(sums, out=sums)
        first = self.steps + 1
        self.steps += len(loss)
        self.regret = float(sums[-1])
        self.x = x
        every = np.arange(first + (-first) % RECORD_EVERY, self.steps + 1, RECORD_EVERY)
        low, high = np.searchsorted(self._curve_steps, [first, self.steps + 1])
        for target, steps in ((self.rows, every), (self.curve, self._curve_steps[low:high])):
            at = steps - first
            columns = (steps, before[at], loss[at], sums[at] / steps)
            target.extend(zip(*(column.tolist() for column in columns), strict=True))

    def add_step(self, before: float, slope: float, x: float) -> None:
        """As `add`, of one step, for which numpy's calls take longer than the numbers do."""
        loss = slope * (before + 1.0)
        self.steps += 1
        self.regret += loss
        self.x = x
        row = (self.steps, before, loss, self.regret / self.steps)
        if self.steps % RECORD_EVERY == 0:
            self.rows.append(row)
        if self.steps in self._on_curve:
            self.curve.append(row)


class Progress:
    """A bar with steps/s, x and the average regret: rich's where it is installed, else a line now and then."""

    def __init__(self, title: str, steps: int) -> None:
        self._title = title
        self._steps = steps
        self._started = self._shown = time.perf_counter()
        self._bar: Any = None
        try:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar
        except ImportError:
            return
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"))
            self._bar = Bar(*columns, TimeRemainingColumn(), console=console, refresh_per_second=8)
            self._task = self._bar.add_task(title.ljust(22), total=steps, now="")

    def update(self, steps: int, x: float, average_regret: float) -> None:
        now = time.perf_counter()
        if now - self._shown < (0.1 if self._bar else 5.0) and steps < self._steps:
            return
        self._shown = now
        text = f"{steps / (now - self._started):>12,.0f} steps/s  x {x:+.6f}  average regret {average_regret:.6f}"
        if self._bar:
            self._bar.update(self._task, completed=steps, now=text)
        else:
            print(f"{self._title:<22} {steps:>12,} of {self._steps:,}  {text}", file=sys.stderr)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()


def write_report(done: Sequence[tuple[Result, Track]], directory: Path) -> None:
    """Prints the table and writes the files."""
    print(
        f"{'optimizer':<10} {'schedule':<13} {'steps':>11} {'x':>10} {'average regret':>15} {'steps/s':>12} {'time':>8}"
    )
    for result, _ in done:
        print(
            f"{result.optimizer:<10} {result.schedule:<13} {result.steps:>11,} {result.x:>10.6f} "
            f"{result.average_regret:>15.6f} {result.steps_per_second:>12,.0f} {result.seconds:>6.1f} s"
        )
    (directory / "summary.json").write_text(json.dumps([result.to_json() for result, _ in done], indent=2) + "\n")
    with (directory / "regret.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["optimizer", "schedule", "step", "x", "loss", "average_regret"])
        for _, track in done:
            writer.writerows((track.optimizer, track.schedule, *row) for row in track.rows)
    files = ["summary.json", "regret.csv"]
    try:
        draw([track for _, track in done], directory / "regret.png")
        files.append("regret.png")
    except ImportError:
        print("no picture: matplotlib is not installed (pip install 'gradwire[plot]')", file=sys.stderr)
    print(f"wrote {', '.join(files)} to {directory}/")


def draw(tracks: Sequence[Track], path: Path) -> None:
    """x and average regret over the steps. Raises ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colors = {"adam": "#d1495b", "amsgrad": "#00798c"}
    names = {"adam": "Adam", "amsgrad": "AMSGrad"}
    others = "#6a4c93"  # one at a time is drawn of those
    lines = {"constant": "-", "inverse-sqrt": "--"}
    rates = {"constant": "lr 0.01", "inverse-sqrt": "lr 0.5/√t"}
    figure = Figure(figsize=(11, 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for track in tracks:
        steps, xs, _, regrets = np.array(track.curve).T
        style = {
            "color": colors.get(track.optimizer, others),
            "linestyle": lines[track.schedule],
            "label": f"{names.get(track.optimizer, track.optimizer)}, {rates[track.schedule]}",
            "linewidth": 1.6,
        }
        left.plot(steps, xs, **style)
        right.plot(steps, regrets, **style)
    for axes, title in ((left, "x  (best: -1)"), (right, "average regret  R(t) / t  (best: 0)")):
        axes.set_xscale("log")
        axes.set_xlabel("step t")
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.axhline(-1, color="0.4", linewidth=0.8, linestyle=":")
    right.axhline(0, color="0.4", linewidth=0.8, linestyle=":")
    # The first large slope lifts the average to hundreds; it says nothing about where it ends.
    right.set_ylim(-0.05, 1.05)
    if tracks[0].steps > 10_000:
        right.set_xlim(left=500)
    left.legend(frameon=False, fontsize=9, loc="upper left")
    figure.savefig(path)
