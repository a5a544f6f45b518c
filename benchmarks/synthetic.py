"""The regret experiment: remote in blocks, remote step by step, and as the local loop that it replaces.

python benchmarks/synthetic.py [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import regret
from benchmarks.floors import GrpcEcho
from benchmarks.measure import Contender, Timing, describe, interleave, machine, save, table, three_digits
from gradwire.client import connect
from gradwire.server.devices.cpu import CpuDevice

LOCAL, STEPWISE, BLOCKS = "local loop, torch", "remote, one round trip a step", "remote, blocks"
STEPWISE_GRPC = "the same through gRPC"
SCAN, ECHO, ECHO_BLOCKS = "local kernel, blocks", "raw gRPC echo of 16 bytes", "raw gRPC echo of the blocks"
FLOORS = {STEPWISE: ECHO, STEPWISE_GRPC: ECHO, BLOCKS: SCAN}

KNOWN = {  # (amsgrad, steps) -> x, average regret
    (True, 20_000): (-0.140226, 0.466280),
    (False, 20_000): (0.992748, 0.581277),
    (True, 1_000_000): (-0.947221, 0.336070),
    (False, 1_000_000): (1.0, 0.497637),
    (True, 10_000_000): (-0.954311, 0.330028),
    (False, 10_000_000): (1.0, 0.497936),
}


class Comparison:
    """All ways of running the experiment under one optimizer, in interleaved rounds."""

    def __init__(self, amsgrad: bool, options: argparse.Namespace) -> None:
        self.name = "AMSGrad" if amsgrad else "Adam"
        self._amsgrad = amsgrad
        self._short: int = options.interactive_steps
        self._long: int = options.steps
        self._block: int = options.block
        self._rounds: int = options.rounds
        self.steps = {LOCAL: self._short, STEPWISE: self._short, STEPWISE_GRPC: self._short, ECHO: self._short}
        self.steps |= {BLOCKS: self._long, SCAN: self._long, ECHO_BLOCKS: self._long}
        self._outcomes: dict[str, regret.Outcome] = {}
        self.timings: Mapping[str, Timing] = {}

    def run(self) -> None:
        short, long, block = self._short, self._long, self._block
        device, directory = CpuDevice(), tempfile.TemporaryDirectory(prefix="benchmark-")
        echo = GrpcEcho("aio", "sync", f"unix:{directory.name}/socket")  # what gradwire's server and client are
        small = [bytes(16)] * short
        large = [bytes(4 * min(block, long - first)) for first in range(0, long, block)]
        with connect("embedded") as server:
            arguments = (self._amsgrad, long, block, short)
            ways: dict[str, Callable[[], regret.Outcome]] = {
                LOCAL: functools.partial(regret.local_loop, self._amsgrad, short),
                STEPWISE: functools.partial(regret.interactive, server, self._amsgrad, short),
                STEPWISE_GRPC: functools.partial(regret.interactive, server, self._amsgrad, short, lane=False),
                BLOCKS: functools.partial(regret.blocks, server, *arguments),
                SCAN: functools.partial(regret.scan, device, *arguments),
            }
            contenders: dict[str, Contender] = {
                name: functools.partial(self._remember, name, way) for name, way in ways.items()
            }
            contenders[ECHO] = lambda: echo.round_trips(small)
            contenders[ECHO_BLOCKS] = lambda: echo.round_trips(large)
            self.timings = interleave(contenders, self._rounds)
        echo.close()
        directory.cleanup()
        device.close()

    def _remember(self, name: str, way: Callable[[], regret.Outcome]) -> float:
        outcome = self._outcomes[name] = way()
        return outcome.seconds

    def ratio(self, ours: str, theirs: str) -> float:
        """Steps/s of ``ours`` over those of ``theirs``, median of the rounds."""
        work: float = self.steps[ours] / self.steps[theirs]
        return work / self.timings[ours].ratio(self.timings[theirs])

    def rows(self) -> list[list[str]]:
        rows = []
        for name, timing in self.timings.items():
            floor = FLOORS.get(name)
            seconds = three_digits(timing.median * 1e6 / self.steps[name])
            to_floor = f"{self.ratio(floor, name):.2f}" if floor else ""
            to_local = "" if name in (ECHO, ECHO_BLOCKS) else three_digits(self.ratio(name, LOCAL))
            rows.append([name, self.name, timing.rate(self.steps[name]), seconds, to_local, to_floor])
        return rows

    def checks(self) -> dict[str, bool]:
        """Whether all of them compute the same."""
        local, stepwise = self._outcomes[LOCAL], self._outcomes[STEPWISE]
        remote, scan = self._outcomes[BLOCKS], self._outcomes[SCAN]
        short = f"{self._short:,} steps"
        checks = {
            f"x after {short}, remote step by step = remote in blocks, bit for bit": stepwise.x == remote.x_at,
            f"x after {short}, by a lane = through gRPC, bit for bit": stepwise.x == self._outcomes[STEPWISE_GRPC].x,
            f"x after {short}, remote = torch to 1e-5": math.isclose(stepwise.x, local.x, abs_tol=1e-5),
            f"average regret after {short}, remote = torch to 2e-6": math.isclose(
                stepwise.average_regret, local.average_regret, abs_tol=2e-6
            ),
            f"x after {self._long:,} steps, remote = local kernel, bit for bit": remote.x == scan.x,
        }
        for steps, outcome in ((self._short, stepwise), (self._long, remote)):
            known = KNOWN.get((self._amsgrad, steps))
            if known is not None:
                same = math.isclose(outcome.x, known[0], abs_tol=1e-5)
                same &= math.isclose(outcome.average_regret, known[1], abs_tol=2e-6)
                checks[f"x = {known[0]} and average regret = {known[1]} after {steps:,} steps"] = same
        return checks

    def to_json(self) -> dict[str, object]:
        return {
            "optimizer": self.name,
            "checks": self.checks(),
            "remote_blocks_to_local_loop": self.ratio(BLOCKS, LOCAL),
            "remote_stepwise_to_local_loop": self.ratio(STEPWISE, LOCAL),
            "outcomes": {
                name: {"steps": self.steps[name], "x": outcome.x, "average_regret": outcome.average_regret}
                for name, outcome in self._outcomes.items()
            },
            "timings": {name: {"steps": self.steps[name], **timing.to_json()} for name, timing in self.timings.items()},
        }


def main() -> int:
    options = _options()
    about = machine()
    print(describe(about), end="\n\n")
    comparisons = [Comparison(amsgrad, options) for amsgrad in (False, True)]
    for comparison in comparisons:
        comparison.run()
    print(
        f"{options.rounds} interleaved rounds; {options.interactive_steps:,} steps of the loops, "
        f"{options.steps:,} steps in blocks of {options.block:,}\n"
    )
    header = ("way", "optimizer", "steps/s [middle half]", "us/step", "x local loop", "x floor's time")
    rows = [comparison.rows() for comparison in comparisons]
    print(table(header, [row for pair in zip(*rows, strict=True) for row in pair]), end="\n\n")
    print("Floor of the round trips: raw gRPC echo of 16 bytes. Floor of the blocks: the local kernel.")
    for comparison in comparisons:
        wire = comparison.timings[BLOCKS].median / (
            comparison.timings[SCAN].median + comparison.timings[ECHO_BLOCKS].median
        )
        print(f"{comparison.name}: remote blocks take {wire:.2f}x of local kernel + raw echo of the same bytes.")
    failed = 0
    for comparison in comparisons:
        for what, holds in comparison.checks().items():
            failed += not holds
            print(f"- {comparison.name}: {what}: {'yes' if holds else 'NO'}")
    results = [comparison.to_json() for comparison in comparisons]
    save(
        options.out,
        {
            "benchmark": "synthetic",
            "machine": about,
            "block": options.block,
            "rounds": options.rounds,
            "results": results,
        },
    )
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="of the block runs (default: 10,000,000)")
    parser.add_argument("--interactive-steps", type=int, help="of the loops, one by one (default: 20,000)")
    parser.add_argument("--block", type=int, default=500_000, help="steps a message (default: 500,000)")
    parser.add_argument("--rounds", type=int, help="(default: 5)")
    parser.add_argument("--quick", action="store_true", help="few steps: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    long, short, rounds = (1_000_000, 2_000, 3) if options.quick else (10_000_000, 20_000, 5)
    options.steps = options.steps or long
    options.interactive_steps = options.interactive_steps or short
    options.rounds = options.rounds or rounds
    return options


if __name__ == "__main__":
    sys.exit(main())
