"""Stochastic gradient descent with momentum, as ``torch.optim.SGD`` has it.

Source: Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning" (2013),
in torch's form, where the learning rate multiplies the buffer. As an outer optimizer of pseudo-gradients (parameters
before minus after local steps): lr 1 is FedAvg (McMahan et al. 2017), with momentum FedAvgM (Hsu, Qi and Brown 2019);
lr 0.7, momentum 0.9, Nesterov is DiLoCo (Douillard et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np

from gradwire.server import jit
from gradwire.server.optimizers.base import Floats, Kernel
from gradwire.server.optimizers.group import Group
from gradwire.server.optimizers.schedules import learning_rate
from gradwire.wire.errors import InvalidHyperparameter

SLOTS = ("momentum_buffer",)


def update(
    p: Any,
    g: Any,
    momentum_buffer: Any,
    momentum: Any,
    weight_decay: Any,
    low: Any,
    high: Any,
    step_size: Any,
    kept: Any,
    added: Any,
    has_momentum: bool,
    nesterov: bool,
    maximize: bool,
) -> Any:
    """One element, one step, in the order of the formulas. Comparisons are written so that NaN propagates."""
    if maximize:
        g = -g
    if weight_decay > 0:  # 0 times an infinite parameter would be NaN
        g = g + weight_decay * p
    if has_momentum:
        momentum_buffer = kept * momentum_buffer + added * g
        g = g + momentum * momentum_buffer if nesterov else momentum_buffer
    p = p - step_size * g
    if p < low:
        p = low
    if p > high:
        p = high
    return p, momentum_buffer


def fill_varying(
    out: Any, first_step: int, first_t: int, schedule: int, lr: float, momentum: float, dampening: float
) -> None:
    """Writes the scalars of each step. The buffer begins with the first gradient as it is: ``b = g`` at t = 1, and
    ``b = momentum*b + (1 - dampening)*g`` after that."""
    for k in range(out.shape[0]):
        first = first_t + k == 1
        out[k, 0] = learning_rate(schedule, lr, first_step + k)
        out[k, 1] = 0.0 if first else momentum
        out[k, 2] = 1.0 if first else 1.0 - dampening


@dataclass(frozen=True, kw_only=True)
class SgdHyperparameters(Group):
    """The numbers and choices of one group; defaults are torch's. Raises InvalidHyperparameter.

    A momentum of 0 keeps no buffer. So an override cannot bring momentum to a group that was made without, nor take it
    away.
    """

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_not_negative("momentum", "weight_decay")
        if not isfinite(self.dampening):
            raise InvalidHyperparameter(f"dampening is {self.dampening}; expected a finite number", field="dampening")
        if self.nesterov and not (self.momentum > 0 and self.dampening == 0):
            raise InvalidHyperparameter(
                f"nesterov with momentum {self.momentum} and dampening {self.dampening}; expected momentum > 0 and "
                "dampening 0",
                field="nesterov",
            )

    @cached_property
    def kernel(self) -> Kernel:
        has_momentum = self.momentum > 0
        statics = (has_momentum, self.nesterov, self.maximize)
        return Kernel(update, SLOTS, SLOTS if has_momentum else (), constants=4, varying=3, statics=statics)

    def constants(self) -> tuple[float, ...]:
        return self.momentum, self.weight_decay, self.low, self.high

    def varying(self, first_step: int, first_t: int, steps: int, dtype: np.dtype[Any]) -> Floats:
        out: Floats = np.empty((steps, 3), dtype)
        fill = jit.host_function(fill_varying, learning_rate)
        fill(out, first_step, first_t, int(self.schedule), self.lr, self.momentum, self.dampening)
        return out
