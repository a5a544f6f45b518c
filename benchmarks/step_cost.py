"""What a step over a lane costs both its sides in processor time, beside the same step by zmq by hand.

python benchmarks/step_cost.py [--quick] [--cases 1,1000] [--out FILE]

Client and server are processes of their own. Windows of steps are interleaved, so that a machine that is busy for a
while is so for everybody; and processor time, unlike what a clock shows, knows nothing of who else is at work, but for
what neighbours take of the caches.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.child import same_threads
from benchmarks.contenders import start
from benchmarks.contenders.problem import Contender, Problem, Unavailable
from benchmarks.measure import Timing, describe, interleave, machine, save, table

STEPS = 500
"""Of a window."""

OURS, PEER = "gradwire, lane and shared memory", "zmq by hand"


@dataclass
class Costs:
    """Of one contender: the windows of its client, its server, both together, and the clock, each in seconds a step."""

    client: list[float]
    server: list[float]
    both: list[float]
    clock: list[float]

    def timings(self) -> dict[str, Timing]:
        return {name: Timing(tuple(values)) for name, values in vars(self).items()}


def measure(case: str, windows: int) -> dict[str, Costs]:
    """The costs of each contender in one case."""
    problem = Problem.from_case(case, "cpu", 1)
    gradients = problem.gradients()
    costs = {name: Costs([], [], [], []) for name in (OURS, PEER)}
    contenders: dict[str, Contender] = {}

    def window(name: str) -> float:
        contender, found = contenders[name], costs[name]
        began, client, server = time.perf_counter(), time.process_time(), contender.server_seconds()
        for _ in range(STEPS):
            contender.step(gradients)
        client, server = time.process_time() - client, contender.server_seconds() - server
        elapsed = time.perf_counter() - began
        for values, seconds in zip(vars(found).values(), (client, server, client + server, elapsed), strict=True):
            values.append(seconds / STEPS)
        return elapsed

    try:
        for name in costs:
            contenders[name] = start(name, problem)
            window(name)
        for found in costs.values():
            for values in vars(found).values():
                values.clear()
        interleave({name: partial(window, name) for name in costs}, windows, warm_up=0)
    finally:
        for contender in contenders.values():
            contender.close()
    return costs


def rows_of(case: str, costs: dict[str, Costs]) -> list[list[str]]:
    peer = costs[PEER].timings()
    rows = []
    for name, found in costs.items():
        cells = [
            f"{1e6 * timing.median:.0f} ({timing.ratio(peer[part]):.2f}x)" for part, timing in found.timings().items()
        ]
        rows.append([name, case, *cells])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the windows")
    parser.add_argument("--cases", default="1,1000", help="ELEMENTS or ELEMENTSxTENSORS, with commas between them")
    parser.add_argument("--out", type=Path, help="where to write all numbers, as JSON")
    options = parser.parse_args()
    same_threads(1)
    about = machine(("pyzmq",))
    try:
        found = {case: measure(case, 8 if options.quick else 40) for case in options.cases.split(",")}
    except Unavailable as reason:
        sys.exit(f"not measured: {reason}")
    print(describe(about), end="\n\n")
    header = ["microseconds a step (x zmq's)", "elements", "client", "server", "both", "by the clock"]
    print(table(header, [row for case, costs in found.items() for row in rows_of(case, costs)]))
    save(
        options.out,
        {
            "machine": about,
            "seconds_a_step": {
                case: {name: vars(of_one) for name, of_one in costs.items()} for case, costs in found.items()
            },
        },
    )


if __name__ == "__main__":
    main()
