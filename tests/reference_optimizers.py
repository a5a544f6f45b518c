"""SGD, Adagrad, Yogi and the FedOpt family, written from their formulas alone: what the server is compared with.

As `tests.reference` for Adam: whole tensors, one step after another, arithmetic in the tensors' own type, the scalars
of a step in Python floats.

Example:
    >>> import numpy as np
    >>> reference = ReferenceRun({"x": np.ones(2)}, Sgd(lr=0.5, momentum=0.9))
    >>> reference.step({"x": np.array([2.0, -2.0])})
    >>> reference.params["x"]
    array([0., 2.])
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tests.reference import Tensor


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """What one group's tensors are updated with; names and defaults are those of the contract."""

    lr: float
    schedule: Literal["constant", "inverse_sqrt"] = "constant"
    bounds: tuple[float, float] = (-math.inf, math.inf)
    maximize: bool = False

    def lr_at(self, run_step: int) -> float:
        return self.lr / math.sqrt(run_step) if self.schedule == "inverse_sqrt" else self.lr

    @abstractmethod
    def begin(self, p: Tensor) -> dict[str, Tensor]:
        """The slots before the first step."""

    @abstractmethod
    def move(self, p: Tensor, g: Tensor, slots: dict[str, Tensor], t: int, lr: float) -> Any:
        """p after step t of the tensor, which changes the slots; the sign of g is turned already."""


@dataclass(frozen=True, kw_only=True)
class Sgd(Rule):
    """torch.optim.SGD, from its documentation."""

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def begin(self, p: Tensor) -> dict[str, Tensor]:
        return {"momentum_buffer": np.zeros_like(p)} if self.momentum else {}

    def move(self, p: Tensor, g: Tensor, slots: dict[str, Tensor], t: int, lr: float) -> Any:
        scalar = p.dtype.type
        if self.weight_decay:
            g = g + scalar(self.weight_decay) * p
        if self.momentum:
            moved = scalar(self.momentum) * slots["momentum_buffer"] + scalar(1 - self.dampening) * g
            b = slots["momentum_buffer"] = g if t == 1 else moved
            g = g + scalar(self.momentum) * b if self.nesterov else b
        return p - scalar(lr) * g


@dataclass(frozen=True, kw_only=True)
class Adagrad(Rule):
    """torch.optim.Adagrad, from its documentation."""

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def begin(self, p: Tensor) -> dict[str, Tensor]:
        return {"sum": np.full_like(p, self.initial_accumulator_value)}

    def move(self, p: Tensor, g: Tensor, slots: dict[str, Tensor], t: int, lr: float) -> Any:
        scalar = p.dtype.type
        if self.weight_decay:
            g = g + scalar(self.weight_decay) * p
        slots["sum"] = slots["sum"] + g * g
        return p - scalar(lr / (1 + (t - 1) * self.lr_decay)) * g / (np.sqrt(slots["sum"]) + scalar(self.eps))


@dataclass(frozen=True, kw_only=True)
class Yogi(Rule):
    """Zaheer et al. 2018, Algorithm 2, with Adam's bias correction where that is asked for."""

    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-3
    weight_decay: float = 0.0
    initial_accumulator_value: float = 1e-6
    bias_correction: bool = True

    def begin(self, p: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": np.zeros_like(p), "exp_avg_sq": np.full_like(p, self.initial_accumulator_value)}

    def move(self, p: Tensor, g: Tensor, slots: dict[str, Tensor], t: int, lr: float) -> Any:
        scalar = p.dtype.type
        beta1, beta2 = self.betas
        if self.weight_decay:
            g = g + scalar(self.weight_decay) * p
        m = slots["exp_avg"] = scalar(beta1) * slots["exp_avg"] + scalar(1 - beta1) * g
        v = slots["exp_avg_sq"]
        v = slots["exp_avg_sq"] = v - scalar(1 - beta2) * np.sign(v - g * g) * (g * g)
        correction1, correction2 = (1 - beta1**t, 1 - beta2**t) if self.bias_correction else (1.0, 1.0)
        return p - scalar(lr / correction1) * m / (np.sqrt(v) / scalar(math.sqrt(correction2)) + scalar(self.eps))


@dataclass(frozen=True, kw_only=True)
class FedOpt(Rule):
    """Reddi et al. 2021, Algorithm 2, word for word: D is after minus before, and x moves by +lr*m/(sqrt(v)+tau)."""

    lr: float = 0.1
    rule: Literal["adam", "yogi", "adagrad", "amsgrad"] = "adam"
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3

    def begin(self, p: Tensor) -> dict[str, Tensor]:
        first = {"exp_avg": np.zeros_like(p)} if self.betas[0] else {}
        slots = {**first, "exp_avg_sq": np.full_like(p, self.tau**2)}
        return slots | ({"max_exp_avg_sq": np.full_like(p, self.tau**2)} if self.rule == "amsgrad" else {})

    def move(self, p: Tensor, g: Tensor, slots: dict[str, Tensor], t: int, lr: float) -> Any:
        scalar = p.dtype.type
        beta1, beta2 = self.betas
        delta = -g
        m = delta
        if self.betas[0]:
            m = scalar(beta1) * -slots["exp_avg"] + scalar(1 - beta1) * delta
            slots["exp_avg"] = -m
        v = slots["exp_avg_sq"]
        if self.rule == "adagrad":
            v = v + delta * delta
        elif self.rule == "yogi":
            v = v - scalar(1 - beta2) * np.sign(v - delta * delta) * (delta * delta)
        else:
            v = scalar(beta2) * v + scalar(1 - beta2) * (delta * delta)
        slots["exp_avg_sq"] = v
        if self.rule == "amsgrad":
            v = slots["max_exp_avg_sq"] = np.maximum(slots["max_exp_avg_sq"], v)
        return p + scalar(lr) * m / (np.sqrt(v) + scalar(self.tau))


@dataclass
class ReferenceRun:
    """All tensors of a run.

    Args:
        params: name -> initial value; copied.
        rules: of every tensor, or name -> rule for groups.
    """

    params: dict[str, Tensor]
    rules: Any
    slots: dict[str, dict[str, Tensor]] = field(init=False)
    t: dict[str, int] = field(init=False)
    run_step: int = 0

    def __post_init__(self) -> None:
        self.params = {name: np.array(value) for name, value in self.params.items()}
        if isinstance(self.rules, Rule):
            self.rules = dict.fromkeys(self.params, self.rules)
        self.slots = {name: self.rules[name].begin(value) for name, value in self.params.items()}
        self.t = dict.fromkeys(self.params, 0)

    def step(self, grads: Mapping[str, Tensor]) -> None:
        """One step. A tensor without a gradient is absent: neither its values nor its t change."""
        self.run_step += 1
        for name, gradient in grads.items():
            rule, p = self.rules[name], self.params[name]
            g = -gradient.astype(p.dtype) if rule.maximize else gradient.astype(p.dtype)
            self.t[name] += 1
            with np.errstate(all="ignore"):
                moved = rule.move(p, g, self.slots[name], self.t[name], rule.lr_at(self.run_step))
            self.params[name] = np.clip(moved, *(p.dtype.type(bound) for bound in rule.bounds))

    def block(self, grads: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """K steps in order; returns the parameters after each of them."""
        trajectory = []
        for present in grads:
            self.step(present)
            trajectory.append(dict(self.params))
        return trajectory
