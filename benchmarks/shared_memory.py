"""One step of a run on the same host: through shared memory, through gRPC, and by hand with torch's fused step.

python benchmarks/shared_memory.py [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.contenders import by_hand
from benchmarks.contenders.gradwire_server import InSharedMemory, OverSharedMemory, OverUnix
from benchmarks.contenders.problem import Contender, Problem
from benchmarks.measure import cores, describe, interleave, machine, save, table, timed

HAND, SHARED, PLACED, GRPC = "by hand, torch fused", "shared memory", "parameters in it", "gRPC over a unix socket"


def main() -> int:
    options = _options()
    about = machine()
    print(describe(about), end="\n\n")
    reports, same = [], True
    for elements in options.elements:
        report, difference = _measure(Problem(elements, threads=options.threads), options.rounds)
        reports.append(report)
        same = same and difference < 1e-5
    save(options.out, {"benchmark": "shared_memory", "machine": about, "threads": options.threads, "sizes": reports})
    return 0 if same else 1


def _measure(problem: Problem, rounds: int) -> tuple[dict[str, object], float]:
    gradients = problem.gradients()
    shared, placed, remote = OverSharedMemory(problem), InSharedMemory(problem), OverUnix(problem)
    assert shared.run.shares_memory
    assert not remote.run.shares_memory
    contenders: dict[str, Contender] = {
        HAND: by_hand.SharedMemory(problem),
        SHARED: shared,
        PLACED: placed,
        GRPC: remote,
    }
    try:
        timings = interleave(
            {name: timed(lambda one=one: one.step(gradients)) for name, one in contenders.items()},  # type: ignore[misc]
            rounds,
            warm_up=2,
        )
        theirs, *ours = (np.concatenate(one.step(gradients)) for one in contenders.values())
    finally:
        for one in contenders.values():
            one.close()
    same = all(np.array_equal(ours[0], other) for other in ours)
    difference = float(np.abs(ours[0] - theirs).max()) if same else float("inf")
    floor = timings[HAND]
    rows = [[name, timing.milliseconds(), f"{timing.ratio(floor):.2f}"] for name, timing in timings.items()]
    print(f"AMSGrad, {problem.elements:,} float32, {rounds} interleaved rounds, {problem.threads} threads\n")
    print(table(("one step", "median [middle half]", "x by hand"), rows), end="\n\n")
    verdict = "the same bits" if difference < float("inf") else "DIFFERENT BITS"
    print(f"- shared memory and gRPC: {verdict}; largest difference to torch {difference:.1e}", end="\n\n")
    report: dict[str, object] = {
        "elements": problem.elements,
        "shared_to_by_hand": timings[SHARED].ratio(floor),
        "in_place_to_by_hand": timings[PLACED].ratio(floor),
        "shared_to_grpc": timings[SHARED].ratio(timings[GRPC]),
        "largest_difference_to_torch": difference,
        "timings": {name: timing.to_json() for name, timing in timings.items()},
    }
    return report, difference


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, nargs="+", help="(default: 25,000,000 1,000,000 100,000 16,384)")
    parser.add_argument("--rounds", type=int, help="(default: 15)")
    parser.add_argument("--threads", type=int, default=cores(), help="of the servers, ours and theirs (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    elements, rounds = ([1_000_000], 5) if options.quick else ([25_000_000, 1_000_000, 100_000, 16_384], 15)
    options.elements = options.elements or elements
    options.rounds = options.rounds or rounds
    return options


if __name__ == "__main__":
    sys.exit(main())
