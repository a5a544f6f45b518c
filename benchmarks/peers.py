"""This project against other ways to let a server do the optimizer's work, and against doing it at home.

python benchmarks/peers.py [--quick] [--device cuda] [--table FILE.md] [--picture FILE.png] [--out FILE]

Every contender sends the same gradients to a process of its own on this host and takes the new parameters back. All do
the same AMSGrad step, with torch's fused kernel wherever the server is a peer's. See `contenders/` for what each does.
All on one processor: `taskset -c 0 python benchmarks/peers.py --cases 1 1000`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks import contenders, floors, peers_page
from benchmarks.child import same_threads
from benchmarks.contenders.problem import Array, Contender, Problem, Unavailable
from benchmarks.measure import Timing, cores, describe, interleave, machine, repeated, save, timed

TCP, ECHO, COPY = "raw TCP, full duplex", "raw gRPC echo", "memory copy, there and back"
CASES = ("1", "1000", "1000000", "25000000", "25000000x161")
QUICK = ("1", "16100x161")


@dataclass(frozen=True)
class Result:
    """All contenders on one problem."""

    problem: Problem
    timings: dict[str, Timing]
    differences: dict[str, float]
    """Largest difference of the parameters to those of local torch, after the last round."""
    echo_way: str
    """How the raw gRPC echo was run."""
    skipped: dict[str, str]
    """Who did not run, and why."""

    @property
    def label(self) -> str:
        several = f" in {self.problem.tensors}" if self.problem.tensors > 1 else ""
        return f"{self.problem.elements:,}{several}"

    @property
    def same(self) -> bool:
        return all(difference < 1e-5 for difference in self.differences.values())

    def to_json(self) -> dict[str, object]:
        return {
            "elements": self.problem.elements,
            "tensors": self.problem.tensors,
            "echo": self.echo_way,
            "largest_differences_to_torch": self.differences,
            "skipped": self.skipped,
            "timings": {name: timing.to_json() for name, timing in self.timings.items()},
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any], problem: Problem) -> Result:
        """What `to_json` gave for this problem."""
        timings = {name: Timing(tuple(timing["seconds"])) for name, timing in found["timings"].items()}
        return cls(problem, timings, found["largest_differences_to_torch"], found["echo"], found["skipped"])


def measure(problem: Problem, names: Sequence[str], rounds: int) -> Result:
    repeats = max(1, min(50, 12_000_000 // problem.size_bytes))
    gradients = problem.gradients()
    running: dict[str, Contender] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            running[name] = contenders.start(name, problem)
        except Unavailable as reason:
            skipped[name] = str(reason)
    echo = floors.fastest_echo(problem.size_bytes, repeats=repeats, rounds=max(3, rounds // 3))
    tcp = floors.RawTcp(problem.size_bytes)
    latest: dict[str, list[Array]] = {}

    def step(name: str) -> None:
        latest[name] = list(running[name].step(gradients))

    raw = {TCP: tcp.exchange, ECHO: echo.exchange, COPY: floors.copy(problem.size_bytes)}
    steps = {name: timed(functools.partial(step, name)) for name in running}
    everybody = {name: repeated(contender, repeats) for name, contender in {**raw, **steps}.items()}
    timings = interleave(everybody, rounds, warm_up=2)
    differences = {
        name: max(float(np.abs(a - b).max()) for a, b in zip(values, latest[contenders.LOCAL], strict=True))
        for name, values in latest.items()
        if name != contenders.LOCAL
    }
    tcp.close()
    echo.close()
    for contender in running.values():
        contender.close()
    return Result(problem, timings, differences, echo.way, skipped)


def fresh(case: str, problem: Problem, names: Sequence[str], rounds: int) -> Result:
    """`measure` in a process of its own: not all peers can be started a second time in one."""
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, __file__, "--one", "--cases", case, "--only", *names, "--out", file.name]
        settings = ["--rounds", str(rounds), "--device", problem.device, "--threads", str(problem.threads)]
        quiet = {"GRPC_VERBOSITY": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR", "GRPC_ENABLE_FORK_SUPPORT": "0"}
        subprocess.run([*command, *settings], check=True, env={**os.environ, **quiet})
        return Result.from_json(json.load(file), problem)


def main() -> int:
    options = _options()
    same_threads(options.threads)
    about = machine()
    if not options.one:
        print(describe(about), end="\n\n")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: there is no GPU here")
        return 0
    names = [*contenders.OURS, *contenders.PEERS, *contenders.FLOORS]
    names = [name for name in names if name in (options.only or names) or name == contenders.LOCAL]
    problems = [Problem.from_case(case, options.device, options.threads) for case in options.cases]
    if options.one:  # the child of `fresh`
        options.out.write_text(json.dumps(measure(problems[0], names, options.rounds).to_json()))
        return 0
    results = []
    for case, problem in zip(options.cases, problems, strict=True):
        results.append(fresh(case, problem, names, options.rounds))
        print(f"{results[-1].label}: measured", flush=True)
    settings = (
        f"{options.rounds} interleaved rounds; {options.threads} thread(s) in every process that computes, "
        f"OMP_WAIT_POLICY=PASSIVE; servers on {options.device}"
    )
    page = peers_page.page(results, describe(about), settings)
    print(f"\n{page}")
    if options.table:
        options.table.write_text(page)
    if options.picture:
        peers_page.picture(results, options.picture)
    report = {
        "benchmark": "peers",
        "machine": about,
        "threads": options.threads,
        "device": options.device,
        "results": [result.to_json() for result in results],
    }
    save(options.out, report)
    return 0 if all(result.same for result in results) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", help=f"elements, or elementsxTENSORS (default: {' '.join(CASES)})")
    parser.add_argument("--only", nargs="+", help="names of contenders; local torch always runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the servers (default: cpu)")
    parser.add_argument("--threads", type=int, default=max(1, cores() // 2), help="of each process (default: half)")
    parser.add_argument("--rounds", type=int, help="(default: 15)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--table", type=Path, help="write the page to this file, as Markdown")
    parser.add_argument("--picture", type=Path, help="write the picture to this file, as PNG")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.cases = options.cases or (QUICK if options.quick else CASES)
    options.rounds = options.rounds or (3 if options.quick else 15)
    return options


if __name__ == "__main__":
    sys.exit(main())
