"""One step of a long vector through the wire: what does it take beyond sending the bytes there and back?

python benchmarks/wire.py [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.echo import Echo
from benchmarks.measure import describe, interleave, machine, save, table, timed
from gradwire.client import TorchAdam, connect
from gradwire.wire.encoding import SLICE_BYTES

ECHO, REMOTE, LOCAL = "raw gRPC echo of the same bytes", "remote step", "local step, torch fused"


def main() -> int:
    options = _options()
    about = machine()
    print(describe(about), end="\n\n")
    random = np.random.default_rng(1)
    params, gradient = random.standard_normal((2, options.elements), np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(params.copy()))
    theirs.grad = torch.from_numpy(gradient)
    local = torch.optim.Adam([theirs], amsgrad=True, fused=True)
    raw = memoryview(gradient).cast("B")
    slices = [bytes(raw[start : start + SLICE_BYTES]) for start in range(0, len(raw), SLICE_BYTES)]
    echo = Echo()
    with connect("embedded") as server, server.create_run("wire", {"x": params}, TorchAdam(amsgrad=True)) as run:
        contenders = {
            ECHO: lambda: echo.stream(slices),
            REMOTE: timed(lambda: run.step({"x": gradient})),
            LOCAL: timed(local.step),
        }
        timings = interleave(contenders, options.rounds, warm_up=2)
        difference = float(np.abs(run.params["x"] - theirs.detach().numpy()).max())
    echo.close()

    floor, remote = timings[ECHO], timings[REMOTE]
    gigabytes = len(raw) / 1e9
    rows = [
        [name, timing.milliseconds(), f"{gigabytes / timing.median:.2f}", f"{timing.ratio(floor):.2f}"]
        for name, timing in timings.items()
    ]
    print(f"AMSGrad, {options.elements:,} float32, {options.rounds} interleaved rounds\n")
    print(table(("one step", "median [middle half]", "GB/s each way", "x echo"), rows), end="\n\n")
    same = difference < 1e-5
    print(f"- largest difference to torch {difference:.1e}: {'same numbers' if same else 'DIFFERENT NUMBERS'}")
    report = {
        "benchmark": "wire",
        "machine": about,
        "elements": options.elements,
        "remote_step_to_echo": remote.ratio(floor),
        "largest_difference_to_torch": difference,
        "timings": {name: timing.to_json() for name, timing in timings.items()},
    }
    save(options.out, report)
    return 0 if same else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, help="(default: 25,000,000)")
    parser.add_argument("--rounds", type=int, help="(default: 15)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    elements, rounds = (1_000_000, 5) if options.quick else (25_000_000, 15)
    options.elements = options.elements or elements
    options.rounds = options.rounds or rounds
    return options


if __name__ == "__main__":
    sys.exit(main())
