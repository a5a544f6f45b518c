"""The problem of "On the Convergence of Adam and Beyond" and the ways to run it that are compared.

f_t(x) = 1010x at t mod 101 = 1 and -10x otherwise, t = 0, 1, 2, ..., x in [-1, 1]; the best fixed x is -1. The average
regret after N steps is the mean of f_t(x_t) - f_t(-1), x_t being the value BEFORE step t.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gradwire.client import Run, Server, TorchAdam
from gradwire.server.devices.base import Segment, State, Write
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.optimizers.adam import AdamHyperparameters, EpsilonPlacement
from gradwire.wire.layout import Range

LR, BETAS, BOUNDS = 1e-2, (0.9, 0.99), (-1.0, 1.0)
PERIOD, RARE, OFTEN = 101, 1010.0, -10.0
_FLOAT32 = np.dtype(np.float32)
Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class Outcome:
    """Where one way of running the experiment has arrived."""

    x: float
    average_regret: float
    seconds: float
    x_at: float
    """x after ``at`` steps, where the run is compared with shorter ones."""


def slopes(steps: int) -> Floats:
    """The gradients of the first steps; they do not depend on x, so a block of them is exact."""
    values = np.full(steps, OFTEN, np.float32)
    values[1::PERIOD] = RARE
    return values


def local_loop(amsgrad: bool, steps: int) -> Outcome:
    """As one writes it with torch: loss, backward, step, clamp, in each of the steps."""
    x = torch.nn.Parameter(torch.zeros(1))
    best = torch.full((1,), BOUNDS[0])
    optimizer = torch.optim.Adam([x], lr=LR, betas=BETAS, amsgrad=amsgrad)
    total = 0.0
    start = time.perf_counter()
    for t in range(steps):
        slope = RARE if t % PERIOD == 1 else OFTEN
        loss = (slope * x).sum() - (slope * best).sum()
        total += loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        x.data.clamp_(*BOUNDS)
    seconds = time.perf_counter() - start
    return Outcome(x.item(), total / steps, seconds, x.item())


def interactive(server: Server, amsgrad: bool, steps: int, *, lane: bool = True) -> Outcome:
    """Each gradient is sent when the parameters of the step before have come back: one round trip a step, by a lane or
    through gRPC."""
    with _run(server, amsgrad, shared_memory=lane) as run:
        x = run.params["x"]
        gradient = np.empty(1, np.float32)
        total = 0.0
        start = time.perf_counter()
        for t in range(steps):
            slope = RARE if t % PERIOD == 1 else OFTEN
            total += slope * (float(x[0]) - BOUNDS[0])
            gradient[0] = slope
            run.step({"x": gradient})
        seconds = time.perf_counter() - start
        return Outcome(float(x[0]), total / steps, seconds, float(x[0]))


def blocks(server: Server, amsgrad: bool, steps: int, block: int, at: int) -> Outcome:
    """Blocks of gradients go out, the trajectories of x come back."""
    with _run(server, amsgrad) as run:

        def advance(gradients: Floats) -> Floats:
            return run.step_many({"x": gradients[:, None]}, returns="trajectory")["x"][:, 0]

        return _in_blocks(advance, steps, block, at)


def scan(device: CpuDevice, amsgrad: bool, steps: int, block: int, at: int) -> Outcome:
    """The same blocks through the server's kernel in this process: no wire, no bookkeeping."""
    placement = EpsilonPlacement.PLAIN
    group = AdamHyperparameters(LR, *BETAS, 1e-8, amsgrad=amsgrad, epsilon_placement=placement, low=-1, high=1)
    kernel = group.kernel
    state: State = device.allocate_state(kernel.used_slots, 1, _FLOAT32)
    constants = np.array(group.constants(), _FLOAT32)
    done = 0

    def advance(gradients: Floats) -> Floats:
        nonlocal done
        count = len(gradients)
        staged, out = device.allocate(count, 1, _FLOAT32), device.allocate(count, 1, _FLOAT32)
        device.write(staged, 0, gradients[:, None])
        segment = Segment(0, 1, kernel, constants, group.varying(done + 1, done + 1, count, _FLOAT32))
        device.update(state, staged, [segment], out=out, write=Write.TRAJECTORY)
        done += count
        return device.read(out, Range(0, count), Range(0, 1))[:, 0]

    return _in_blocks(advance, steps, block, at)


def _in_blocks(advance: Callable[[Floats], Floats], steps: int, block: int, at: int) -> Outcome:
    x, x_at, total = np.float32(0), np.nan, 0.0
    start = time.perf_counter()
    pattern = slopes(block + PERIOD)
    for first in range(0, steps, block):
        stop = min(first + block, steps)
        gradients = pattern[first % PERIOD :][: stop - first]
        after = advance(gradients)
        before = np.concatenate(([x], after[:-1]))
        total += float(np.dot(gradients.astype(np.float64), before - BOUNDS[0]))
        x = after[-1]
        if first < at <= stop:
            x_at = float(after[at - 1 - first])
    return Outcome(float(x), total / steps, time.perf_counter() - start, x_at)


def _run(server: Server, amsgrad: bool, **options: Any) -> Run:
    optimizer = TorchAdam(lr=LR, betas=BETAS, amsgrad=amsgrad, bounds=BOUNDS)
    return server.create_run("regret", {"x": np.zeros(1, np.float32)}, optimizer, on_existing="replace", **options)
