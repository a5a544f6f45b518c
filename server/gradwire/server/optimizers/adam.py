"""Adam and AMSGrad.

Sources: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015); Reddi, Kale and Kumar, "On the Convergence
of Adam and Beyond" (2018); Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019). Variants: those
of ``labml_nn.optimizers`` (epsilon-hat form), ``torch.optim`` (plain form), optax (maximum of the corrected moment).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from math import inf, isfinite, isnan, sqrt
from typing import Any

import numpy as np

from gradwire.server import jit
from gradwire.server.optimizers.base import Floats, Kernel
from gradwire.server.optimizers.schedules import Schedule, learning_rate
from gradwire.wire.errors import InvalidHyperparameter

SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class EpsilonPlacement(IntEnum):
    """Where epsilon is added."""

    EPS_HAT = 1
    PLAIN = 2


class MaximumOf(IntEnum):
    """What AMSGrad takes the maximum of."""

    RAW = 1
    BIAS_CORRECTED = 2


class WeightDecayMode(IntEnum):
    """How weight decay acts."""

    DECOUPLED = 1
    DECOUPLED_ABSOLUTE = 2
    COUPLED = 3


def update(
    p: Any,
    g: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    max_exp_avg_sq: Any,
    beta1: Any,
    one_minus_beta1: Any,
    beta2: Any,
    one_minus_beta2: Any,
    eps: Any,
    weight_decay: Any,
    low: Any,
    high: Any,
    decay: Any,
    step_size: Any,
    root_correction2: Any,
    correction2: Any,
    coupled: bool,
    amsgrad: bool,
    plain: bool,
    corrected_maximum: bool,
    maximize: bool,
) -> Any:
    """One element, one step, in the order of the formulas. Comparisons are written so that NaN propagates."""
    if maximize:
        g = -g
    p = p * decay
    if coupled and weight_decay > 0:  # 0 times an infinite parameter would be NaN
        g = g + weight_decay * p
    exp_avg = beta1 * exp_avg + one_minus_beta1 * g
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * g * g
    u = exp_avg_sq
    if corrected_maximum:
        u = exp_avg_sq / correction2
    if amsgrad:
        if u > max_exp_avg_sq or u != u:
            max_exp_avg_sq = u
        u = max_exp_avg_sq
    root = sqrt(u)
    if plain and not corrected_maximum:
        root = root / root_correction2
    p = p - step_size * exp_avg / (root + eps)
    if p < low:
        p = low
    if p > high:
        p = high
    return p, exp_avg, exp_avg_sq, max_exp_avg_sq


def fill_varying(
    out: Any,
    first_step: int,
    first_t: int,
    schedule: int,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    decay_mode: int,
    eps_hat: bool,
    bias_correction: bool,
) -> None:
    """Writes the scalars of each step. They depend on (hyperparameters, t) alone: running products would drift."""
    # Below this, 1 - beta**t is exactly 1, and for every later t too: no power has to be computed any more.
    negligible = 5e-17
    power1 = 1.0
    power2 = 1.0
    for k in range(out.shape[0]):
        rate = learning_rate(schedule, lr, first_step + k)
        decay = 1.0
        if decay_mode == 1:
            decay = 1.0 - rate * weight_decay
        elif decay_mode == 2:
            decay = 1.0 - weight_decay
        correction1 = 1.0
        correction2 = 1.0
        if bias_correction:
            if power1 > negligible:
                power1 = beta1 ** float(first_t + k)
            if power2 > negligible:
                power2 = beta2 ** float(first_t + k)
            correction1 = 1.0 - power1
            correction2 = 1.0 - power2
        root_correction2 = sqrt(correction2)
        step_size = rate / correction1
        if eps_hat:
            step_size = rate * root_correction2 / correction1
        out[k, 0] = decay
        out[k, 1] = step_size
        out[k, 2] = root_correction2
        out[k, 3] = correction2


@dataclass(frozen=True)
class AdamHyperparameters:
    """The numbers and choices of one group; defaults are labml's. Raises InvalidHyperparameter."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-16
    weight_decay: float = 0.0
    weight_decay_mode: WeightDecayMode = WeightDecayMode.DECOUPLED
    amsgrad: bool = False
    epsilon_placement: EpsilonPlacement = EpsilonPlacement.EPS_HAT
    maximum_of: MaximumOf = MaximumOf.RAW
    bias_correction: bool = True
    schedule: Schedule = Schedule.CONSTANT
    low: float = -inf
    high: float = inf
    maximize: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "weight_decay"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise InvalidHyperparameter(f"{name} is {value}; expected a finite number >= 0", field=name)
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InvalidHyperparameter(f"{name} is {value}; expected 0 <= {name} < 1", field=name)
        if isnan(self.low) or isnan(self.high) or not self.low <= self.high:
            raise InvalidHyperparameter(f"bounds are [{self.low}, {self.high}]; expected low <= high", field="bounds")
        if self.maximum_of is MaximumOf.BIAS_CORRECTED and not (
            self.amsgrad and self.bias_correction and self.epsilon_placement is EpsilonPlacement.PLAIN
        ):
            raise InvalidHyperparameter(
                "maximum_of BIAS_CORRECTED needs amsgrad, bias correction and the plain epsilon placement",
                field="maximum_of",
            )

    @cached_property
    def kernel(self) -> Kernel:
        statics = (
            self.weight_decay_mode is WeightDecayMode.COUPLED,
            self.amsgrad,
            self.epsilon_placement is EpsilonPlacement.PLAIN and self.bias_correction,
            self.maximum_of is MaximumOf.BIAS_CORRECTED,
            self.maximize,
        )
        return Kernel(update, SLOTS, SLOTS if self.amsgrad else SLOTS[:2], constants=8, varying=4, statics=statics)

    def constants(self) -> tuple[float, ...]:
        return (
            self.beta1,
            1 - self.beta1,
            self.beta2,
            1 - self.beta2,
            self.eps,
            self.weight_decay,
            self.low,
            self.high,
        )

    def varying(self, first_step: int, first_t: int, steps: int, dtype: np.dtype[Any]) -> Floats:
        out: Floats = np.empty((steps, 4), dtype)
        jit.host_function(fill_varying, learning_rate)(
            out,
            first_step,
            first_t,
            int(self.schedule),
            self.lr,
            self.beta1,
            self.beta2,
            self.weight_decay,
            int(self.weight_decay_mode),
            self.epsilon_placement is EpsilonPlacement.EPS_HAT,
            self.bias_correction,
        )
        return out

    def learning_rate(self, step: int) -> float:
        return learning_rate(self.schedule, self.lr, step)

    def replace(self, changes: Mapping[str, float]) -> AdamHyperparameters:
        return dataclasses.replace(self, **changes) if changes else self  # type: ignore[arg-type]
