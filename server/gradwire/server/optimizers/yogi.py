"""Yogi: Adam with a second moment that grows and shrinks by additions.

Source: Zaheer, Reddi, Sachan, Kale and Kumar, "Adaptive Methods for Nonconvex Optimization" (2018), Algorithm 2:
``v = v - (1-b2)*sign(v - g^2)*g^2``. The paper corrects no bias, as here ``bias_correction=False``. Implementations
(``torch_optimizer.Yogi``, optax, TensorFlow Federated) do as Adam does, and begin v with 1e-6, which is the default
here; eps is added to the corrected root, as by the first two. m begins with 0, as in the paper and in the last.
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

SLOTS = ("exp_avg", "exp_avg_sq")


def update(
    p: Any,
    g: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    beta1: Any,
    one_minus_beta1: Any,
    one_minus_beta2: Any,
    eps: Any,
    weight_decay: Any,
    low: Any,
    high: Any,
    step_size: Any,
    root_correction2: Any,
    maximize: bool,
) -> Any:
    """One element, one step, in the order of the formulas. Comparisons are written so that NaN propagates."""
    if maximize:
        g = -g
    if weight_decay > 0:  # 0 times an infinite parameter would be NaN
        g = g + weight_decay * p
    exp_avg = beta1 * exp_avg + one_minus_beta1 * g
    square = g * g
    change = one_minus_beta2 * square
    above = exp_avg_sq - square
    if above > 0:
        exp_avg_sq = exp_avg_sq - change
    if above < 0:
        exp_avg_sq = exp_avg_sq + change
    if above != above:
        exp_avg_sq = above
    p = p - step_size * exp_avg / (sqrt(exp_avg_sq) / root_correction2 + eps)
    if p < low:
        p = low
    if p > high:
        p = high
    return p, exp_avg, exp_avg_sq


def fill_varying(
    out: Any, first_step: int, first_t: int, schedule: int, lr: float, beta1: float, beta2: float, bias_correction: bool
) -> None:
    """Writes the scalars of each step. They depend on (hyperparameters, t) alone: running products would drift."""
    for k in range(out.shape[0]):
        rate = learning_rate(schedule, lr, first_step + k)
        correction1 = 1.0
        correction2 = 1.0
        if bias_correction:
            correction1 = 1.0 - beta1 ** float(first_t + k)
            correction2 = 1.0 - beta2 ** float(first_t + k)
        out[k, 0] = rate / correction1
        out[k, 1] = sqrt(correction2)


@dataclass(frozen=True, kw_only=True)
class YogiHyperparameters(Group):
    """The numbers and choices of one group. Raises InvalidHyperparameter."""

    lr: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-3
    weight_decay: float = 0.0
    initial_accumulator_value: float = 1e-6
    bias_correction: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_decay("beta1", "beta2")
        self.check_not_negative("eps", "weight_decay", "initial_accumulator_value")

    @property
    def initial_values(self) -> Mapping[str, float]:
        return {"exp_avg_sq": self.initial_accumulator_value}

    @cached_property
    def kernel(self) -> Kernel:
        return Kernel(update, SLOTS, SLOTS, constants=7, varying=2, statics=(self.maximize,))

    def constants(self) -> tuple[float, ...]:
        return (
            self.beta1,
            1 - self.beta1,
            1 - self.beta2,
            self.eps,
            self.weight_decay,
            self.low,
            self.high,
        )

    def varying(self, first_step: int, first_t: int, steps: int, dtype: np.dtype[Any]) -> Floats:
        out: Floats = np.empty((steps, 2), dtype)
        fill = jit.host_function(fill_varying, learning_rate)
        fill(out, first_step, first_t, int(self.schedule), self.lr, self.beta1, self.beta2, self.bias_correction)
        return out
