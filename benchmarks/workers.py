"""Many workers on one run, against other ways to let several processes train one vector.

python benchmarks/workers.py [--quick] [--docs] [--cases 2x1000 ...] [--only NAME ...] [--out FILE]

Each worker is a process that sends a gradient and has the parameters of the round afterwards, all on this host. All
teams do the same Adam step with the mean of the same gradients, see `teams/`; that each worker ends with the same
parameters is checked first. Then what it costs to close a round, without the wire, and 64 workers as threads of two
processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import closing_cost, teams, workers_page
from benchmarks.backend import Backend
from benchmarks.child import same_threads
from benchmarks.measure import Timing, cores, describe, interleave, machine, save
from benchmarks.teams.gradwire_crowd import PROCESSES, GradwireCrowd
from benchmarks.teams.task import Task
from benchmarks.teams.team import Team, Unavailable

CASES = ("2x1000", "8x1000", "2x1000000", "8x1000000", "2x25000000")
QUICK = ("2x1000",)
CROWD, CROWD_ELEMENTS = 64, 1000
FIRST_ROUNDS = 5
"""After which the parameters are compared."""
TOLERANCE = 2e-6
"""Of parameters of about 1, each of whose rounds may round differently by one unit in the last place."""
GLOO_TARGET, GLOO_CASES = 1.5, ("2x1000000", "2x25000000")


@dataclass(frozen=True)
class Result:
    """All teams on one task."""

    task: Task
    timings: Mapping[str, Timing]
    """Seconds of a round."""
    differences: Mapping[str, float]
    """Largest difference of any worker's parameters to those computed here, after the first rounds."""
    skipped: Mapping[str, str]
    """Who did not run, and why."""

    @property
    def case(self) -> str:
        return f"{self.task.workers}x{self.task.elements}"

    @property
    def label(self) -> str:
        return f"{self.task.workers} x {self.task.elements:,}"

    @property
    def same(self) -> bool:
        return all(difference < TOLERANCE for difference in self.differences.values())

    def to_json(self) -> dict[str, object]:
        return {
            "workers": self.task.workers,
            "elements": self.task.elements,
            "largest_differences": self.differences,
            "skipped": self.skipped,
            "timings": {name: timing.to_json() for name, timing in self.timings.items()},
        }


def measure(task: Task, names: Sequence[str], rounds: int, seconds: float) -> Result:
    """Args: rounds: interleaved windows of each team; seconds: of one window, about."""
    running: dict[str, Team] = {}
    skipped: dict[str, str] = {}
    try:
        for name in names:
            try:
                running[name] = teams.start(name, task)
            except Unavailable as reason:
                skipped[name] = str(reason)
        return Result(task, *compare(task, running, rounds, seconds), skipped)
    finally:
        for team in running.values():
            team.close()


def compare(
    task: Task, running: Mapping[str, Team], rounds: int, seconds: float
) -> tuple[dict[str, Timing], dict[str, float]]:
    """Timings and differences of teams that have done nothing yet."""
    for team in running.values():
        team.window(FIRST_ROUNDS)
    expected = task.expected(FIRST_ROUNDS)
    differences = {
        name: max(float(np.abs(params - expected).max()) for params in team.parameters())
        for name, team in running.items()
    }
    del expected
    lengths = {name: _length(team, seconds) for name, team in running.items()}

    def window(name: str) -> float:
        return running[name].window(lengths[name]) / lengths[name]

    contenders = {name: (lambda name=name: window(name)) for name in running}
    return interleave(contenders, rounds), differences


def _length(team: Team, seconds: float) -> int:
    """Rounds of a window."""
    few = 3
    return max(1, min(5000, round(seconds * few / team.window(few))))


def crowd(threads: int, rounds: int, seconds: float) -> Result:
    """Many workers as threads, ours alone."""
    task = Task(CROWD_ELEMENTS, CROWD, threads)
    team = GradwireCrowd(task)
    try:
        return Result(task, *compare(task, {teams.OURS: team}, rounds, seconds), {})
    finally:
        team.close()


def main() -> int:
    options = _options()
    same_threads(options.threads)
    about = machine(("ray", "flwr"))
    print(describe(about), end="\n\n")
    names = [name for name in teams.KINDS if name in (options.only or teams.KINDS) or name == teams.OURS]
    results = []
    for case in options.cases:
        workers, _, elements = case.partition("x")
        task = Task(int(elements), int(workers), options.threads)
        results.append(measure(task, names, options.rounds, options.seconds))
        rates = "; ".join(f"{name} {timing.rate(1)}" for name, timing in results[-1].timings.items())
        print(f"{results[-1].label}, rounds/s: {rates}", flush=True)
    many = crowd(options.threads, options.rounds, options.seconds)
    backend = Backend("cpu", options.threads)
    closings = [closing_cost.run(backend, workers, options.closing, options.rounds) for workers in (2, 8)]
    backend.close()
    settings = (
        f"{options.rounds} interleaved windows of about {options.seconds:g} s; {options.threads} thread(s) in a "
        f"process that updates while workers wait, shared between workers that all update; {CROWD} workers: threads of "
        f"{PROCESSES} processes"
    )
    section = workers_page.section(results, many, closings, describe(about), settings)
    print(f"\n{section}")
    if options.docs:
        workers_page.write(section)
    report = {
        "benchmark": "workers",
        "machine": about,
        "threads": options.threads,
        "results": [result.to_json() for result in (*results, many)],
        "closing": [closing.to_json() for closing in closings],
    }
    save(options.out, report)
    same = all(result.same for result in (*results, many)) and all(closing.same for closing in closings)
    return 0 if same else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", help=f"WORKERSxELEMENTS (default: {' '.join(CASES)})")
    parser.add_argument("--only", nargs="+", help="names of teams; ours always runs")
    parser.add_argument("--closing", type=int, help="elements where rounds are closed alone (default: 25,000,000)")
    parser.add_argument("--threads", type=int, default=cores(), help="of a process that updates (default: all)")
    parser.add_argument("--rounds", type=int, help="windows (default: 9)")
    parser.add_argument("--seconds", type=float, help="of a window (default: 1)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--docs", action="store_true", help="write the figures into docs/workers.md")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    cases, closing, rounds, seconds = (QUICK, 100_000, 3, 0.1) if options.quick else (CASES, 25_000_000, 9, 1.0)
    options.cases = options.cases or cases
    options.closing = options.closing or closing
    options.rounds = options.rounds or rounds
    options.seconds = options.seconds or seconds
    return options


if __name__ == "__main__":
    sys.exit(main())
