"""One AMSGrad step over a long vector: how near is it to torch's fused kernel, and to the speed of memory?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.backend import FLOAT32, Backend
from benchmarks.measure import Timing, interleave, timed
from gradwire.server.devices.base import Segment, State
from gradwire.server.optimizers.adam import SLOTS, AdamHyperparameters, EpsilonPlacement
from gradwire.server.optimizers.base import Hyperparameters, Kernel
from gradwire.wire.layout import Range

TARGET = 1.3
"""Our step may take this many times torch's."""

PLAIN = AdamHyperparameters(eps=1e-8, amsgrad=True, epsilon_placement=EpsilonPlacement.PLAIN)  # as torch computes it
EPS_HAT = AdamHyperparameters(eps=1e-8, amsgrad=True)

COPY, TORCH, STEP, HAT = "memory copy", "torch fused AMSGrad", "AMSGrad step", "AMSGrad step, eps-hat"
AWAY, NORM, TORCH_NORM = "AMSGrad step, to other vectors", "sum of squares", "torch vector_norm, float64"
ADDITIONS = "the step's vectors, additions only"


def bytes_moved(name: str, device: str) -> int:
    """Of memory, for each element: a step reads five vectors and writes four. A processor also reads those before it
    writes them, if they are not the same."""
    if name in (NORM, TORCH_NORM):
        return 4
    return 52 if name == AWAY and not device.startswith("cuda") else 36


def update(p: Any, g: Any, exp_avg: Any, exp_avg_sq: Any, max_exp_avg_sq: Any) -> Any:
    """A kernel that reads and writes what a step does, and computes next to nothing: how fast can a step be?"""
    return p + g, exp_avg + g, exp_avg_sq + g, max_exp_avg_sq + g


PEERS = {STEP: TORCH, HAT: TORCH, NORM: TORCH_NORM}


@dataclass(frozen=True)
class Result:
    """What one backend did with ``elements`` float32."""

    label: str
    elements: int
    timings: dict[str, Timing]
    difference: float
    """Largest |ours - torch's| of the parameters, after all rounds."""

    @property
    def same(self) -> bool:
        """Parameters are about 1 in size and each round may round differently by one unit in the last place."""
        return self.difference < 1e-5

    @property
    def ratio(self) -> float:
        return self.timings[STEP].ratio(self.timings[TORCH])

    @property
    def on_target(self) -> bool:
        return self.ratio <= TARGET

    def verdict(self) -> str:
        share = self.timings[COPY].ratio(self.timings[STEP])
        numbers = "same numbers" if self.same else "DIFFERENT NUMBERS"
        return (
            f"a step takes {self.ratio:.2f}x torch fused, runs at {share:.0%} of the measured copy bandwidth, "
            f"and takes {self.timings[STEP].ratio(self.timings[ADDITIONS]):.2f}x additions over the same vectors; "
            f"largest difference to torch {self.difference:.1e}: {numbers}"
        )

    def rows(self) -> list[list[str]]:
        floor = self.timings[COPY]
        rows = []
        for name, timing in self.timings.items():
            bytes_each = bytes_moved(name, self.label)
            moved = bytes_each * self.elements
            to_floor = timing.ratio(floor) * bytes_moved(COPY, self.label) / bytes_each
            peer = PEERS.get(name)
            to_peer = f"{timing.ratio(self.timings[peer]):.2f}" if peer else ""
            rate = f"{moved / timing.median / 1e9:.1f}"
            rows.append([name, self.label, timing.milliseconds(), rate, f"{to_floor:.2f}", to_peer])
        return rows

    def to_json(self) -> dict[str, object]:
        return {
            "device": self.label,
            "elements": self.elements,
            "step_to_torch_fused": self.ratio,
            "largest_difference_to_torch": self.difference,
            "timings": {name: timing.to_json() for name, timing in self.timings.items()},
        }


HEADER = ("one step", "device", "median [middle half]", "GB/s", "x copy floor", "x torch")


class Vector:
    """A run's state under one group's hyperparameters, which counts its steps."""

    def __init__(self, backend: Backend, group: Hyperparameters, params: np.ndarray[Any, Any]) -> None:
        self._device = backend.device
        self._group = group
        self._steps = 0
        self.state = State(
            backend.upload(params),
            {name: backend.device.allocate(1, params.shape[1], FLOAT32) for name in group.kernel.used_slots},
        )

    def update(self, gradients: Any, target: State | None = None) -> None:
        """A step, in place or to ``target``."""
        t = self._steps + 1
        segment = Segment(
            0,
            gradients.shape[1],
            self._group.kernel,
            np.array(self._group.constants(), FLOAT32),
            self._group.varying(t, t, 1, FLOAT32),
        )
        self._device.update(self.state, gradients, [segment], target=target)
        if target is None:
            self._steps = t


def run(backend: Backend, elements: int, rounds: int) -> Result:
    backend.begin()
    random = np.random.default_rng(1)
    params = random.standard_normal((1, elements), np.float32)
    values = random.standard_normal((1, elements), np.float32)
    gradients = backend.upload(values)
    plain, hat = Vector(backend, PLAIN, params), Vector(backend, EPS_HAT, params)
    target = backend.device.allocate_state(PLAIN.kernel.used_slots, elements, FLOAT32)

    nothing = np.empty((1, 0), FLOAT32)
    adds = Segment(0, elements, Kernel(update, SLOTS, SLOTS, 0, 0, ()), nothing[0], nothing)

    theirs = torch.nn.Parameter(backend.tensor(params[0]))
    theirs.grad = gradient = backend.tensor(values[0])
    betas = (PLAIN.beta1, PLAIN.beta2)
    peer = torch.optim.Adam([theirs], lr=PLAIN.lr, betas=betas, eps=PLAIN.eps, amsgrad=True, fused=True)

    contenders = {
        COPY: backend.copier(bytes_moved(COPY, backend.label) // 2 * elements),
        ADDITIONS: lambda: backend.device.update(target, gradients, [adds]),
        TORCH: backend.synchronized(peer.step),
        STEP: lambda: plain.update(gradients),
        HAT: lambda: hat.update(gradients),
        AWAY: lambda: plain.update(gradients, target),
        NORM: lambda: backend.device.square_sums(gradients, 0, [Range(0, elements)]),
        TORCH_NORM: lambda: torch.linalg.vector_norm(gradient, dtype=torch.float64).item(),
    }
    timings = interleave({name: timed(call) for name, call in contenders.items()}, rounds, warm_up=2)
    ours = backend.download(plain.state.params)[0]
    difference = float(np.abs(ours - theirs.detach().cpu().numpy()).max())
    return Result(backend.label, elements, timings, difference)
