"""Who shares a server with somebody who keeps it busy: how long do short steps take?

python benchmarks/neighbours.py [--quick] [--out FILE]

A drives long steps, long blocks, or runs of many tensors; B takes short steps, one after another. Control: the same A
at the same time on a SECOND server process, so that the machine is as busy and the server is not. A, B and both servers
are processes of their own. Beside it: how late the event loop of B's server came to what was due, while A was there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc
import numpy as np

from benchmarks.child import Child, ready, same_threads
from benchmarks.measure import describe, machine, save, table
from gradwire.client import AMSGrad, Run, connect
from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc
from gradwire.wire.layout import MAX_TENSORS
from gradwire.wire.service import MESSAGE_OPTIONS

RATIO_TARGET, LAG_TARGET_SECONDS = 1.5, 0.005
LONG, BLOCKS, TENSORS = "long steps", "long blocks", "many tensors"
HEADER = (
    "A's work",
    "B, A elsewhere",
    "B, A here",
    "p99 / control",
    "lag, A elsewhere",
    "lag, A here",
    "A's rounds",
)
SHARED, CONTROL = "shared", "control"


@dataclass
class Windows:
    """What B saw in all windows of one kind, and of which time they were."""

    step_seconds: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)
    """Of each window."""
    spans: list[tuple[float, float]] = field(default_factory=list)
    """By the monotonic clock, which all processes share."""
    rounds_of_a: int = 0

    def add(self, steps: list[float], begin: float, rounds: int) -> None:
        self.step_seconds += steps
        self.p99s.append(percentile(steps, 99))
        self.spans.append((begin, time.monotonic()))
        self.rounds_of_a += rounds

    def text(self) -> str:
        return f"{1e3 * statistics.median(self.step_seconds):.2f} / {1e3 * percentile(self.step_seconds, 99):.2f} ms"

    def lags(self, noted: list[tuple[float, float]]) -> list[float]:
        """How late the loop was in these windows."""
        return [late for moment, late in noted if any(begin <= moment <= end for begin, end in self.spans)]


def lag_text(late: list[float]) -> str:
    return f"{1e3 * percentile(late, 99):.1f} / {1e3 * percentile(late, 99.9):.1f} ms"


def percentile(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent))


# --- A, in a process of its own ---------------------------------------------------------------------------------------


class Driver:
    """A: one run of each kind on one server."""

    def __init__(self, target: str, elements: int, steps: int, tensors: int) -> None:
        self._server = connect(target)
        self._long: Run = self._server.create_run("long", {"x": np.zeros(elements, np.float32)}, optimizer=AMSGrad())
        self._gradient = {"x": np.ones(elements, np.float32)}
        self._short: Run = self._server.create_run("blocks", {"x": np.zeros(1, np.float32)}, optimizer=AMSGrad())
        self._block = {"x": np.ones((steps, 1), np.float32)}
        channel = grpc.insecure_channel(target, MESSAGE_OPTIONS)
        self._stub: Any = service_pb2_grpc.OptimizerServiceStub(channel)
        self._spec = run_pb2.RunSpec(name="runs/tensors")
        group = self._spec.groups.add(adam=AMSGrad().to_message())
        for index in range(tensors):
            group.tensors.add(name=f"layers.{index}.weight", shape=[1])
        self.work: dict[str, Callable[[], object]] = {
            LONG: lambda: self._long.step(self._gradient),
            BLOCKS: lambda: self._short.step_many(self._block),
            TENSORS: self._make_and_look,
        }

    def _make_and_look(self) -> None:
        def requests() -> Iterator[service_pb2.CreateRunRequest]:
            header = service_pb2.CreateRunHeader(spec=self._spec, request_id=uuid.uuid4().hex, replace=True)
            yield service_pb2.CreateRunRequest(header=header)
            values = bytes(4 * len(self._spec.groups[0].tensors))
            yield service_pb2.CreateRunRequest(slice=run_pb2.Slice(data=values))

        self._stub.CreateRun(requests())
        for _ in range(3):
            self._stub.GetRun(service_pb2.GetRunRequest(name=self._spec.name))


def drive(targets: list[str], sizes: list[int]) -> None:
    """A's side: ``[server's index, kind, seconds]`` a line, answered with the number of rounds."""
    drivers = [Driver(target, *sizes) for target in targets]
    ready(None)
    for line in sys.stdin:
        index, kind, seconds = json.loads(line)
        until, rounds = time.monotonic() + seconds, 0
        work = drivers[index].work[kind]
        while time.monotonic() < until:
            work()
            rounds += 1
        ready(rounds)


# --- the rounds -------------------------------------------------------------------------------------------------------


def window(a: Child, b: Child, server: int, kind: str, windows: Windows, seconds: float) -> None:
    """B steps at the first server, while A works on the one with this index."""
    before, after = 0.2 * seconds, 0.1 * seconds  # A is there from B's first step to its last
    a.tell([server, kind, before + seconds + after])
    time.sleep(before)
    begin = time.monotonic()
    (steps,) = b.ask({"step": 1, "seconds": seconds})
    windows.add(steps, begin, 0)
    windows.rounds_of_a += a.hear()


def main() -> int:
    options = _options()
    same_threads(1)
    about = machine()
    print(describe(about), end="\n\n")
    found = {kind: {SHARED: Windows(), CONTROL: Windows()} for kind in options.kinds}
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        noted = [Path(directory) / f"{name}.json" for name in (SHARED, CONTROL)]
        serve = [str(here / "watched_server.py")]
        servers = [
            Child([*serve, str(file), "serve", "--embedded", "--listen", "127.0.0.1:0", *options.server])
            for file in noted
        ]
        targets = [server.said["addresses"][0] for server in servers]
        sizes = [options.elements, options.steps, options.tensors]
        a = Child([str(here / "neighbours.py"), "--drive", json.dumps([targets, sizes])])
        b = Child([str(here / "load.py"), "gradwire", targets[0], "b", str(options.short)])
        b.ask({"create": 1})
        b.ask({"attach": 1})
        alone = Windows()
        (steps,) = b.ask({"step": 1, "seconds": options.seconds})  # warm-up
        begin = time.monotonic()
        (steps,) = b.ask({"step": 1, "seconds": options.seconds})
        alone.add(steps, begin, 0)
        for index in range(options.rounds):
            for kind, windows in found.items():
                pair = (SHARED, CONTROL) if index % 2 else (CONTROL, SHARED)
                for name in pair:
                    window(a, b, (SHARED, CONTROL).index(name), kind, windows[name], options.seconds)
        for child in (a, b, *servers):
            child.close()
        lags = json.loads(noted[0].read_text())
    print(
        f"AMSGrad. A: steps of {options.elements:,} elements, blocks of {options.steps:,} steps, runs of "
        f"{options.tensors:,} tensors; B: steps of {options.short:,}. {options.rounds} interleaved windows of "
        f"{options.seconds:g} s; median / p99 of B's steps, p99 / p99.9 of the lag of the loop that serves B; "
        "A's rounds with B, and on the second server.\n"
    )
    rows, results, met = [], [], True
    for kind, windows in found.items():
        shared, control = windows[SHARED], windows[CONTROL]
        ratio = statistics.median(ours / theirs for ours, theirs in zip(shared.p99s, control.p99s, strict=True))
        late = shared.lags(lags)
        lag = percentile(late, 99.9)
        met = met and ratio <= RATIO_TARGET and lag <= LAG_TARGET_SECONDS
        beside = control.lags(lags)
        rounds = f"{shared.rounds_of_a} / {control.rounds_of_a}"
        rows.append([kind, control.text(), shared.text(), f"{ratio:.2f}", lag_text(beside), lag_text(late), rounds])
        results.append(
            {
                "kind": kind,
                "p99_ratio": ratio,
                "lag_p999_seconds": lag,
                "control_lag_p999_seconds": percentile(beside, 99.9),
                **{name: {"p99_seconds": part.p99s, "steps": len(part.step_seconds)} for name, part in windows.items()},
            }
        )
    print(table(HEADER, rows), end="\n\n")
    print(f"- B on a machine that nobody else uses: {alone.text()}")
    print(f"- the loop's lag then: {lag_text(alone.lags(lags))}; load average at the end: {os.getloadavg()[0]:.1f}")
    print(
        f"- targets: p99 at most {RATIO_TARGET:g} times the control's, median over the windows; lag p99.9 at most "
        f"{1e3 * LAG_TARGET_SECONDS:g} ms: {'met' if met else 'MISSED'}"
    )
    save(options.out, {"benchmark": "neighbours", "machine": about, "kinds": results})
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, help="of A's long steps (default: 25,000,000)")
    parser.add_argument("--steps", type=int, help="of A's blocks (default: 1,000,000)")
    parser.add_argument("--tensors", type=int, help=f"of A's runs (default: {MAX_TENSORS:,})")
    parser.add_argument("--short", type=int, default=1000, help="elements of B's steps (default: 1,000)")
    parser.add_argument("--kinds", nargs="+", choices=(LONG, BLOCKS, TENSORS), default=(LONG, BLOCKS, TENSORS))
    parser.add_argument("--server", nargs="*", default=(), help="further arguments of `gradwire serve`")
    parser.add_argument("--seconds", type=float, help="of one window (default: 3)")
    parser.add_argument("--rounds", type=int, help="(default: 4)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quick = options.quick
    options.elements = options.elements or (100_000 if quick else 25_000_000)
    options.steps = options.steps or (10_000 if quick else 1_000_000)
    options.tensors = options.tensors or (1000 if quick else MAX_TENSORS)
    options.seconds = options.seconds or (0.3 if quick else 3.0)
    options.rounds = options.rounds or (1 if quick else 4)
    if options.drive:
        drive(*json.loads(options.drive))
        sys.exit(0)
    return options


if __name__ == "__main__":
    sys.exit(main())
