"""One step of each optimizer over a long vector: how near to torch's fused kernel where torch has one, and to memory's
speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.backend import FLOAT32, Backend
from benchmarks.long_vector import TARGET, Vector
from benchmarks.measure import Timing, interleave, timed
from gradwire.server.optimizers.adagrad import AdagradHyperparameters
from gradwire.server.optimizers.base import Hyperparameters, initial_values
from gradwire.server.optimizers.fed_opt import FedOptHyperparameters, Rule
from gradwire.server.optimizers.sgd import SgdHyperparameters
from gradwire.server.optimizers.yogi import YogiHyperparameters

COPY, TORCH, STEP = "copy of as many bytes", "torch fused", "step"
HEADER = ("one step", "device", "median [middle half]", "GB/s", "x copy floor", "torch fused", "x torch")

GROUPS: dict[str, tuple[Hyperparameters, Any]] = {
    "SGD": (SgdHyperparameters(lr=1e-3), torch.optim.SGD),
    "SGD, momentum": (SgdHyperparameters(lr=1e-3, momentum=0.9), torch.optim.SGD),
    "SGD, Nesterov": (SgdHyperparameters(lr=1e-3, momentum=0.9, nesterov=True), torch.optim.SGD),
    "Adagrad": (AdagradHyperparameters(lr=1e-3), torch.optim.Adagrad),
    "Yogi": (YogiHyperparameters(lr=1e-3), None),
    "FedAdam": (FedOptHyperparameters(lr=1e-3), None),
    "FedYogi": (FedOptHyperparameters(lr=1e-3, rule=Rule.YOGI), None),
    "FedAdagrad": (FedOptHyperparameters(lr=1e-3, rule=Rule.ADAGRAD, beta1=0.0), None),
    "FedAMSGrad": (FedOptHyperparameters(lr=1e-3, rule=Rule.AMSGRAD), None),
}
_TORCH_OPTIONS = ("lr", "momentum", "nesterov", "eps")


@dataclass(frozen=True)
class Result:
    """What one backend did with ``elements`` float32, for one optimizer."""

    name: str
    label: str
    elements: int
    bytes_each: int
    """Of memory, for each element: the gradient is read, parameters and slots are read and written."""
    timings: dict[str, Timing]
    difference: float
    """Largest |ours - torch's| of the parameters, after all rounds; 0 where torch has none."""

    @property
    def same(self) -> bool:
        """Parameters are about 1 in size and each round may round differently by one unit in the last place."""
        return self.difference < 1e-5

    @property
    def to_floor(self) -> float:
        return self.timings[STEP].ratio(self.timings[COPY])

    @property
    def to_torch(self) -> float | None:
        return self.timings[STEP].ratio(self.timings[TORCH]) if TORCH in self.timings else None

    @property
    def on_target(self) -> bool:
        """At most so many times torch's, or the copy's where that is what there is or is the slower one."""
        return min(self.to_floor, self.to_torch or self.to_floor) <= TARGET

    def row(self) -> list[str]:
        step = self.timings[STEP]
        rate = f"{self.bytes_each * self.elements / step.median / 1e9:.1f}"
        torch_columns = [self.timings[TORCH].milliseconds(), f"{self.to_torch:.2f}"] if self.to_torch else ["", ""]
        return [self.name, self.label, step.milliseconds(), rate, f"{self.to_floor:.2f}", *torch_columns]

    def to_json(self) -> dict[str, object]:
        return {
            "optimizer": self.name,
            "device": self.label,
            "elements": self.elements,
            "step_to_copy_floor": self.to_floor,
            "step_to_torch_fused": self.to_torch,
            "largest_difference_to_torch": self.difference,
            "timings": {name: timing.to_json() for name, timing in self.timings.items()},
        }


def run(backend: Backend, elements: int, rounds: int) -> list[Result]:
    return [_one(backend, name, elements, rounds) for name in GROUPS]


def _one(backend: Backend, name: str, elements: int, rounds: int) -> Result:
    backend.begin()
    group, peer = GROUPS[name]
    random = np.random.default_rng(1)
    params = random.standard_normal((1, elements), np.float32)
    values = random.standard_normal((1, elements), np.float32)
    gradients, ours = backend.upload(values), Vector(backend, group, params)
    for slot, value in initial_values(group).items():
        backend.device.write(ours.state.slots[slot], 0, np.full((1, elements), value, np.float32))
    bytes_each = FLOAT32.itemsize * (3 + 2 * len(group.kernel.used_slots))
    contenders = {
        COPY: backend.copier(bytes_each * elements // 2),
        STEP: lambda: ours.update(gradients),
    }
    theirs = torch.nn.Parameter(backend.tensor(params[0]))
    if peer is not None:
        theirs.grad = backend.tensor(values[0])
        options = {option: getattr(group, option) for option in _TORCH_OPTIONS if hasattr(group, option)}
        contenders[TORCH] = backend.synchronized(peer([theirs], fused=True, **options).step)
    timings = interleave({key: timed(call) for key, call in contenders.items()}, rounds, warm_up=2)
    found = backend.download(ours.state.params)[0]
    difference = 0.0 if peer is None else float(np.abs(found - theirs.detach().cpu().numpy()).max())
    return Result(name, backend.label, elements, bytes_each, timings, difference)
