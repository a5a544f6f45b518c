"""Adagrad, as ``torch.optim.Adagrad`` has it.

Source: Duchi, Hazan and Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization" (2011).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np

from gradwire.server import jit
from gradwire.server.optimizers.base import Floats, Kernel
from gradwire.server.optimizers.group import Group
from gradwire.server.optimizers.schedules import learning_rate

SLOTS = ("sum",)
"""torch's name: the squares of all gradients so far."""


def update(
    p: Any,
    g: Any,
    squares: Any,
    eps: Any,
    weight_decay: Any,
    low: Any,
    high: Any,
    step_size: Any,
    maximize: bool,
) -> Any:
    """One element, one step, in the order of the formulas. Comparisons are written so that NaN propagates."""
    if maximize:
        g = -g
    if weight_decay > 0:  # 0 times an infinite parameter would be NaN
        g = g + weight_decay * p
    squares = squares + g * g
    p = p - step_size * g / (sqrt(squares) + eps)
    if p < low:
        p = low
    if p > high:
        p = high
    return p, squares


def fill_varying(out: Any, first_step: int, first_t: int, schedule: int, lr: float, lr_decay: float) -> None:
    """Writes the scalars of each step: ``lr / (1 + (t-1)*lr_decay)``."""
    for k in range(out.shape[0]):
        rate = learning_rate(schedule, lr, first_step + k)
        out[k, 0] = rate / (1.0 + (first_t + k - 1) * lr_decay)


@dataclass(frozen=True, kw_only=True)
class AdagradHyperparameters(Group):
    """The numbers and choices of one group; defaults are torch's. Raises InvalidHyperparameter."""

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_not_negative("lr_decay", "weight_decay", "initial_accumulator_value", "eps")

    @property
    def initial_values(self) -> Mapping[str, float]:
        return {"sum": self.initial_accumulator_value}

    @cached_property
    def kernel(self) -> Kernel:
        return Kernel(update, SLOTS, SLOTS, constants=4, varying=1, statics=(self.maximize,))

    def constants(self) -> tuple[float, ...]:
        return self.eps, self.weight_decay, self.low, self.high

    def varying(self, first_step: int, first_t: int, steps: int, dtype: np.dtype[Any]) -> Floats:
        out: Floats = np.empty((steps, 1), dtype)
        fill = jit.host_function(fill_varying, learning_rate)
        fill(out, first_step, first_t, int(self.schedule), self.lr, self.lr_decay)
        return out
