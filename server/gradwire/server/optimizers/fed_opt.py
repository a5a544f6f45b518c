"""FedAdam, FedYogi, FedAdagrad and FedAMSGrad: what a server does with the mean of its clients' updates.

Source: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar and McMahan, "Adaptive Federated Optimization" (2021),
Algorithm 2; FedAMSGrad is Wang, Lin and Chen, "Communication-Efficient Adaptive Federated Learning" (2022). There the
pseudo-gradient D is after minus before and x moves by ``+lr*m/(sqrt(v)+tau)``; here gradients are before minus after,
so that the sign of g and m is the other one, and x moves by ``-``. No bias is corrected, and v begins with tau^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np

from gradwire.server import jit
from gradwire.server.optimizers.base import Floats, Kernel
from gradwire.server.optimizers.group import Group
from gradwire.server.optimizers.schedules import learning_rate

SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class Rule(IntEnum):
    """What becomes of v, the second moment."""

    ADAM = 1
    YOGI = 2
    ADAGRAD = 3
    AMSGRAD = 4


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
    tau: Any,
    low: Any,
    high: Any,
    step_size: Any,
    has_momentum: bool,
    yogi: bool,
    adagrad: bool,
    amsgrad: bool,
    maximize: bool,
) -> Any:
    """One element, one step, in the order of the formulas. Comparisons are written so that NaN propagates."""
    if maximize:
        g = -g
    square = g * g
    if has_momentum:
        exp_avg = beta1 * exp_avg + one_minus_beta1 * g
        g = exp_avg
    if yogi:
        change = one_minus_beta2 * square
        above = exp_avg_sq - square
        if above > 0:
            exp_avg_sq = exp_avg_sq - change
        if above < 0:
            exp_avg_sq = exp_avg_sq + change
        if above != above:
            exp_avg_sq = above
    elif adagrad:
        exp_avg_sq = exp_avg_sq + square
    else:
        exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * square
    v = exp_avg_sq
    if amsgrad:
        if v > max_exp_avg_sq or v != v:
            max_exp_avg_sq = v
        v = max_exp_avg_sq
    p = p - step_size * g / (sqrt(v) + tau)
    if p < low:
        p = low
    if p > high:
        p = high
    return p, exp_avg, exp_avg_sq, max_exp_avg_sq


def fill_varying(out: Any, first_step: int, schedule: int, lr: float) -> None:
    """Writes the scalars of each step."""
    for k in range(out.shape[0]):
        out[k, 0] = learning_rate(schedule, lr, first_step + k)


@dataclass(frozen=True, kw_only=True)
class FedOptHyperparameters(Group):
    """The numbers and choices of one group; betas are the paper's. Raises InvalidHyperparameter.

    A beta1 of 0 keeps no first moment. So an override cannot bring one to a group that was made without, nor take it
    away.
    """

    lr: float = 0.1
    rule: Rule = Rule.ADAM
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_decay("beta1", "beta2")
        self.check_not_negative("tau")

    @property
    def initial_values(self) -> Mapping[str, float]:
        return {"exp_avg_sq": self.tau * self.tau, "max_exp_avg_sq": self.tau * self.tau}

    @cached_property
    def kernel(self) -> Kernel:
        has_momentum, amsgrad = self.beta1 > 0, self.rule is Rule.AMSGRAD
        used = tuple(slot for slot, is_used in zip(SLOTS, (has_momentum, True, amsgrad), strict=True) if is_used)
        statics = (has_momentum, self.rule is Rule.YOGI, self.rule is Rule.ADAGRAD, amsgrad, self.maximize)
        return Kernel(update, SLOTS, used, constants=7, varying=1, statics=statics)

    def constants(self) -> tuple[float, ...]:
        return (
            self.beta1,
            1 - self.beta1,
            self.beta2,
            1 - self.beta2,
            self.tau,
            self.low,
            self.high,
        )

    def varying(self, first_step: int, first_t: int, steps: int, dtype: np.dtype[Any]) -> Floats:
        out: Floats = np.empty((steps, 1), dtype)
        jit.host_function(fill_varying, learning_rate)(out, first_step, int(self.schedule), self.lr)
        return out
