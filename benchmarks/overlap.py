"""How long does `RemoteOptimizer.step` wait when gradients leave during the backward pass?

Client and server each have a processor of their own, where there are two. The model's backward pass takes longer than
the upload of its gradients, which is checked.

The gradients go through gRPC, as to a server elsewhere, unless told otherwise.

python benchmarks/overlap.py [--shared-memory] [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.measure import Timing, describe, interleave, machine, save, table, timed
from gradwire.client import Server, TorchAdam, connect
from gradwire.client.torch import RemoteOptimizer

PLAIN, OVERLAP = "overlap=False", "overlap=True"
UPLOAD = "upload of the gradients and the update, no answer"
TARGET = 0.6


class Training:
    """A multilayer perceptron on random data, and the times of the parts of its last iteration, in seconds."""

    def __init__(self, server: Server, overlap: bool, width: int, layers: int, batch: int) -> None:
        torch.manual_seed(0)
        parts = [part for _ in range(layers) for part in (torch.nn.Linear(width, width), torch.nn.Tanh())]
        self.model = torch.nn.Sequential(*parts)
        self.inputs = torch.randn(batch, width)
        self.optimizer = RemoteOptimizer(
            self.model.parameters(),
            TorchAdam(lr=1e-4, amsgrad=True),
            target=server,
            run=f"overlap-{overlap}",
            overlap=overlap,
        )
        self.backward: list[float] = []
        self.whole: list[float] = []

    def iteration(self) -> float:
        """Seconds that ``step`` takes in one iteration."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.model(self.inputs).square().mean()
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        self.optimizer.step()
        end = time.perf_counter()
        self.backward.append(backward - forward)
        self.whole.append(end - start)
        return end - backward


def main() -> int:
    options = _options()
    about = machine()
    print(describe(about), end="\n\n")
    with connect("embedded", shared_memory=options.shared_memory) as server:
        pinned = _pin(server)
        sizes = (options.width, options.layers, options.batch)
        trainings = {PLAIN: Training(server, False, *sizes), OVERLAP: Training(server, True, *sizes)}
        parameters = sum(param.numel() for param in trainings[PLAIN].model.parameters())
        gradient = {"x": np.ones((1, parameters), np.float32)}
        with server.create_run("upload", {"x": np.zeros(parameters, np.float32)}, TorchAdam(amsgrad=True)) as run:
            contenders = {
                **{name: training.iteration for name, training in trainings.items()},
                UPLOAD: timed(lambda: run.step_many(gradient, returns="none")),
            }
            timings = interleave(contenders, options.rounds, warm_up=2)
        values = [[param.detach() for param in training.model.parameters()] for training in trainings.values()]
        same = all(torch.equal(plain, ahead) for plain, ahead in zip(*values, strict=True))
        parts = {
            name: {
                "backward": Timing(tuple(training.backward[-options.rounds :])),
                "iteration": Timing(tuple(training.whole[-options.rounds :])),
            }
            for name, training in trainings.items()
        }

    ratio = timings[OVERLAP].ratio(timings[PLAIN])
    hidden = parts[PLAIN]["backward"].median > timings[UPLOAD].median
    rows = [
        [name, timings[name].milliseconds(), part["backward"].milliseconds(), part["iteration"].milliseconds()]
        for name, part in parts.items()
    ]
    way = "shared memory" if options.shared_memory else "gRPC"
    print(f"{parameters:,} float32 parameters, {options.rounds} interleaved rounds; {pinned}; {way}\n")
    print(table(("median [middle half]", "step() waits", "backward", "whole iteration"), rows), end="\n\n")
    print(f"- {UPLOAD}: {timings[UPLOAD].milliseconds()}: {'less' if hidden else 'MORE'} than a backward pass")
    print(f"- step() waits {ratio:.2f} of what it waits without overlap (target: at most {TARGET})")
    print(f"- parameters after {options.rounds + 2} steps: {'equal bit for bit' if same else 'DIFFERENT'}")
    report = {
        "benchmark": "overlap",
        "machine": about,
        "parameters": parameters,
        "pinned": pinned,
        "wait_to_wait_without_overlap": ratio,
        "timings": {name: timing.to_json() for name, timing in timings.items()},
        "parts": {name: {key: timing.to_json() for key, timing in part.items()} for name, part in parts.items()},
    }
    save(options.out, report)
    return 0 if same else 1


def _pin(server: Server) -> str:
    """Gives the server a processor of its own; says what it did."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    mine = sorted(affinity(0)) if affinity else []
    assert server.embedded is not None
    if len(mine) < 2:
        return "client and server share the processor"
    for task in os.listdir(f"/proc/{server.embedded.pid}/task"):
        os.sched_setaffinity(int(task), mine[-1:])
    os.sched_setaffinity(0, mine[:-1])
    torch.set_num_threads(len(mine) - 1)
    return f"the server has one processor of its own, the client {len(mine) - 1}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, help="of each layer (default: 1024)")
    parser.add_argument("--layers", type=int, help="(default: 8)")
    parser.add_argument("--batch", type=int, help="(default: 1024)")
    parser.add_argument("--rounds", type=int, help="(default: 15)")
    parser.add_argument("--shared-memory", action="store_true", help="values through shared memory, not through gRPC")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, measures nothing")
    parser.add_argument("--out", type=Path, help="write all figures to this file, as JSON")
    options = parser.parse_args()
    width, layers, batch, rounds = (64, 3, 64, 3) if options.quick else (1024, 8, 1024, 15)
    options.width = options.width or width
    options.layers = options.layers or layers
    options.batch = options.batch or batch
    options.rounds = options.rounds or rounds
    return options


if __name__ == "__main__":
    sys.exit(main())
