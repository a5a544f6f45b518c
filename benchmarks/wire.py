"""One step through the wire: what does it take beyond sending the bytes there and back?

python benchmarks/wire.py [--device cuda] [--quick] [--out FILE]

With a GPU: what the server asks of it for one step is measured alone as well, to tell whether it hides behind the wire.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks import device_alone, floors
from benchmarks.child import same_threads
from benchmarks.contenders.by_hand import SharedMemory
from benchmarks.contenders.gradwire_server import (
    Gradwire,
    OverSharedMemory,
    OverTcp,
    OverTls,
    OverUnix,
    make_certificates,
)
from benchmarks.contenders.local_torch import Fused
from benchmarks.contenders.problem import Array, Contender, Problem
from benchmarks.measure import Timing, cores, describe, interleave, machine, repeated, save, table, timed
from gradwire.client.options import ENCODINGS

TCP, ECHO, BY_HAND, LOCAL = "raw TCP, full duplex", "raw gRPC echo", "shared memory by hand", "local torch, fused"
EXACT = "float32"
TRANSPORTS: dict[str, Callable[..., Gradwire]] = {
    "loopback TCP": OverTcp,
    "unix socket": OverUnix,
    "shared memory": OverSharedMemory,
    "TLS": OverTls,
}
USUAL = [name for name in TRANSPORTS if name != "TLS"]
PLAIN = "float32, not encrypted"
TLS_TARGETS = {1: 1.25, 25_000_000: 1.5}
"""Elements -> at most so many times our own step that is not encrypted."""
TARGETS = {1: 1.3, 1_000_000: 1.5, 25_000_000: 1.5}
"""Elements -> at most so many times the floor, for a step in float32."""
HEADER = ("one step", "median [middle half]", "x floor", "x raw TCP", "x our float32")


@dataclass(frozen=True)
class Result:
    """All contenders of one transport and one size."""

    transport: str
    problem: Problem
    timings: dict[str, Timing]
    floor: str
    """Name of the floor among ``timings``."""
    way: str
    """How the floor was run."""
    differences: dict[str, float]
    """Largest difference of the parameters to torch's, for each encoding."""
    steps: int
    """After which it was taken."""
    alone: dict[str, Timing]
    """The parts of a step on a device that is not the CPU, each without a wire; else empty."""

    @property
    def same(self) -> bool:
        """Parameters are about 4 at most, and each step may round differently by one unit in the last place."""
        return self.differences[EXACT] < 4 * 1.2e-7 * max(20, self.steps)

    def rows(self) -> list[list[str]]:
        def ratio(timing: Timing, name: str) -> str:
            return f"{timing.ratio(self.timings[name]):.2f}" if name in self.timings else ""

        return [
            [
                name,
                timing.milliseconds(),
                ratio(timing, self.floor),
                ratio(timing, TCP),
                ratio(timing, EXACT) if name in ENCODINGS else "",
            ]
            for name, timing in (self.timings | self.alone).items()
        ]

    def verdicts(self) -> list[str]:
        step = self.timings[EXACT].ratio(self.timings[self.floor])
        target = TARGETS.get(self.problem.elements)
        judged = "" if target is None else f" (target {target}: {'met' if step <= target else 'MISSED'})"
        lines = [f"step / {self.floor}: {step:.2f}{judged}; the floor: {self.way}"]
        if self.floor == ECHO:
            lines[0] += f", {self.timings[ECHO].ratio(self.timings[TCP]):.2f} of raw TCP"
        if PLAIN in self.timings:
            over = self.timings[EXACT].ratio(self.timings[PLAIN])
            target = TLS_TARGETS.get(self.problem.elements)
            judged = "" if target is None else f" (target {target}: {'met' if over <= target else 'MISSED'})"
            lines.append(f"step / our step that is not encrypted: {over:.2f}{judged}")
        if self.alone:
            lines.append(device_alone.verdict(self.timings[EXACT], self.timings[self.floor], self.alone))
        found = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        verdict = "same numbers" if self.same else "DIFFERENT NUMBERS"
        lines.append(f"largest difference to torch after {self.steps} steps: {found}: {verdict}")
        return lines

    def to_json(self) -> dict[str, object]:
        return {
            "transport": self.transport,
            "elements": self.problem.elements,
            "floor": self.floor,
            "floor_way": self.way,
            "step_to_floor": self.timings[EXACT].ratio(self.timings[self.floor]),
            "largest_differences_to_torch": self.differences,
            "timings": {name: timing.to_json() for name, timing in (self.timings | self.alone).items()},
        }


def measure(transport: str, problem: Problem, encodings: list[str], rounds: int, repeats: int) -> Result:
    repeats = max(1, min(repeats, 4_000_000 // problem.size_bytes))
    gradients = problem.gradients()
    make = TRANSPORTS[transport]
    ours = {name: make(problem, gradient_encoding=name, parameter_encoding=name) for name in encodings}
    steps: dict[str, Contender] = {**ours, LOCAL: Fused(problem)}
    raw: dict[str, floors.RawTcp | floors.FastestEcho] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        if transport == "shared memory":
            floor, way = BY_HAND, "two copies and torch's fused step"
            steps[BY_HAND] = SharedMemory(problem)
        else:
            address = f"unix:{directory}/echo" if transport == "unix socket" else floors.LOOPBACK
            tls = None
            if transport == "TLS":
                tls = make_certificates(Path(directory))
                steps[PLAIN] = OverTcp(problem, gradient_encoding=EXACT, parameter_encoding=EXACT)
            rounds_of_echo = max(3, rounds // 2)
            echo = floors.fastest_echo(problem.size_bytes, address, repeats=repeats, rounds=rounds_of_echo, tls=tls)
            floor, way = ECHO, echo.way
            raw = {TCP: floors.RawTcp(problem.size_bytes), ECHO: echo}
        contenders = {name: repeated(each.exchange, repeats) for name, each in raw.items()}
        latest: dict[str, list[Array]] = {}

        def step(name: str) -> None:
            latest[name] = list(steps[name].step(gradients))

        contenders |= {name: repeated(timed(functools.partial(step, name)), repeats) for name in steps}
        device = device_alone.DeviceAlone(problem) if problem.device != "cpu" else None
        if device:
            contenders |= {name: repeated(timed(part), repeats) for name, part in device.parts.items()}
        timings = interleave(contenders, rounds, warm_up=2)
        alone = {name: timings.pop(name) for name in (device.parts if device else ())}
        differences = {
            name: max(float(np.abs(a - b).max()) for a, b in zip(latest[name], latest[LOCAL], strict=True))
            for name in ours
        }
        for each in (*raw.values(), *steps.values(), *([device] if device else [])):
            each.close()
    return Result(transport, problem, timings, floor, way, differences, (2 + rounds) * repeats, alone)


def main() -> int:
    options = _options()
    same_threads(options.threads)
    about = machine()
    print(describe(about), end="\n\n")
    print(f"AMSGrad, {options.rounds} interleaved rounds, {options.threads} thread(s) in every process that computes")
    results = []
    for transport in options.transports:
        for elements in options.elements:
            problem = Problem(elements, device=options.device, threads=options.threads)
            result = measure(transport, problem, options.encodings, options.rounds, options.repeats)
            results.append(result)
            print(f"\n{transport}, {elements:,} float32\n\n{table(HEADER, result.rows())}\n")
            print("\n".join(f"- {line}" for line in result.verdicts()), flush=True)
    report = {
        "benchmark": "wire",
        "machine": about,
        "device": options.device,
        "threads": options.threads,
        "results": [result.to_json() for result in results],
    }
    save(options.out, report)
    return 0 if all(result.same for result in results) else 1


def _options() -> argparse.Namespace:
    names = [name for name in ENCODINGS if name != "float64"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, nargs="+", help="(default: 1 1,000 1,000,000 25,000,000)")
    parser.add_argument("--encodings", nargs="+", choices=names, default=names, help="float32 is always among them")
    parser.add_argument("--transports", nargs="+", choices=TRANSPORTS, default=USUAL, help="(default: all but TLS)")
    parser.add_argument("--device", default="cpu", help="of whoever updates: cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, default=max(1, cores() // 2), help="of each process (default: half)")
    parser.add_argument("--rounds", type=int, help="(default: 15)")
    parser.add_argument("--repeats", type=int, default=200, help="of a short exchange in a round (default: 200)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    elements, rounds = ([1, 100_000], 3) if options.quick else ([1, 1000, 1_000_000, 25_000_000], 15)
    options.elements = options.elements or elements
    options.rounds = options.rounds or rounds
    options.encodings = [EXACT, *(name for name in options.encodings if name != EXACT)]
    return options


if __name__ == "__main__":
    sys.exit(main())
