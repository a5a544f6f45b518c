"""Very many AMSGrad steps over one element, which is how the regret experiment runs: updates a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.backend import FLOAT32, Backend
from benchmarks.measure import Timing, interleave, timed
from gradwire.server.devices.base import Segment, Write
from gradwire.server.optimizers.adam import AdamHyperparameters, EpsilonPlacement

TARGET = 10e6
"""Updates a second, the scalars of each step included."""

GROUP = AdamHyperparameters(
    lr=1e-2, beta2=0.99, eps=1e-8, amsgrad=True, epsilon_placement=EpsilonPlacement.PLAIN, low=-1, high=1
)
TORCH_STEPS = 2000
"""torch takes some 50 us a step, so it checks the beginning only."""

FLOOR, LAST, TRAJECTORY, SCALARS = "the loop by hand", "block, last", "block, trajectory", "of which: scalars"
HEADER = ("block of steps over one element", "device", "updates/s [middle half]", "ns an update", "x by hand")


@dataclass(frozen=True)
class Result:
    """What one backend did with blocks of ``steps``."""

    label: str
    steps: int
    timings: dict[str, Timing]
    difference_by_hand: float
    """Largest difference of x over the whole first trajectory to the loop by hand."""
    difference_torch: float
    """The same to torch, over its first TORCH_STEPS steps."""

    @property
    def same(self) -> bool:
        return self.difference_by_hand < 1e-5 and self.difference_torch < 1e-5

    def updates_per_second(self, name: str) -> float:
        return self.steps / self.timings[name].median

    @property
    def on_target(self) -> bool:
        return min(self.updates_per_second(LAST), self.updates_per_second(TRAJECTORY)) >= TARGET

    def verdict(self) -> str:
        numbers = "same numbers" if self.same else "DIFFERENT NUMBERS"
        return (
            f"largest difference to the loop by hand {self.difference_by_hand:.1e}, "
            f"to torch {self.difference_torch:.1e}: {numbers}"
        )

    def rows(self) -> list[list[str]]:
        floor = self.timings[FLOOR]
        return [
            [
                name,
                self.label,
                timing.rate(self.steps),
                f"{1e9 * timing.median / self.steps:.1f}",
                f"{timing.ratio(floor):.2f}",
            ]
            for name, timing in self.timings.items()
        ]

    def to_json(self) -> dict[str, object]:
        return {
            "device": self.label,
            "steps": self.steps,
            "updates_per_second": {name: self.updates_per_second(name) for name in self.timings},
            "largest_difference_to_loop_by_hand": self.difference_by_hand,
            "largest_difference_to_torch": self.difference_torch,
            "timings": {name: timing.to_json() for name, timing in self.timings.items()},
        }


def _scan(gradients: Any, out: Any, lr: float, beta1: float, beta2: float, eps: float) -> None:
    """The same recurrence as plainly as it can be written, with its scalars in float64."""
    f32 = np.float32
    x, m, v, vmax = f32(0), f32(0), f32(0), f32(0)
    b1, one_b1, b2, one_b2, small = f32(beta1), f32(1 - beta1), f32(beta2), f32(1 - beta2), f32(eps)
    for k in range(gradients.shape[0]):
        t = float(k + 1)
        size = f32(lr / (1 - beta1**t))
        root = f32(np.sqrt(1 - beta2**t))
        g = gradients[k]
        m = b1 * m + one_b1 * g
        v = b2 * v + one_b2 * g * g
        vmax = max(vmax, v)
        x = x - size * m / (np.sqrt(vmax) / root + small)
        x = min(max(x, f32(-1)), f32(1))
        out[k] = x


def _torch_trajectory(slopes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    x = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([x], lr=GROUP.lr, betas=(GROUP.beta1, GROUP.beta2), eps=GROUP.eps, amsgrad=True)
    values = []
    for slope in slopes:
        x.grad = torch.full((1,), float(slope))
        optimizer.step()
        x.data.clamp_(GROUP.low, GROUP.high)
        values.append(x.item())
    return np.array(values)


def run(backend: Backend, steps: int, rounds: int) -> Result:
    device = backend.device
    slopes = np.where(np.arange(steps) % 101 == 1, 1010, -10).astype(np.float32)
    gradients = backend.upload(slopes[:, None])
    trajectory = device.allocate(steps, 1, FLOAT32)
    by_hand = np.empty(steps, np.float32)
    scan = numba.njit(_scan, error_model="numpy")

    def block(write: Write) -> None:
        state = device.allocate_state(GROUP.kernel.used_slots, 1, FLOAT32)
        varying = GROUP.varying(1, 1, steps, FLOAT32)
        segment = Segment(0, 1, GROUP.kernel, np.array(GROUP.constants(), FLOAT32), varying)
        device.update(state, gradients, [segment], out=trajectory, write=write)

    contenders = {
        FLOOR: lambda: scan(slopes, by_hand, GROUP.lr, GROUP.beta1, GROUP.beta2, GROUP.eps),
        LAST: lambda: block(Write.LAST),
        TRAJECTORY: lambda: block(Write.TRAJECTORY),
        SCALARS: lambda: GROUP.varying(1, 1, steps, FLOAT32),
    }
    timings = interleave({name: timed(call) for name, call in contenders.items()}, rounds)
    block(Write.TRAJECTORY)
    ours = backend.download(trajectory)[:, 0]
    theirs = _torch_trajectory(slopes[:TORCH_STEPS])
    return Result(
        backend.label,
        steps,
        timings,
        difference_by_hand=float(np.abs(ours - by_hand).max()),
        difference_torch=float(np.abs(ours[: len(theirs)] - theirs).max()),
    )
