"""Adam and AMSGrad once more, written from the formulas alone: what the server is compared with.

It shares nothing with ``gradwire.server``: whole tensors rather than elements, one step after another, nothing clever.
Tensors are numpy arrays of float32 or float64 and all arithmetic on them stays in their type; the scalars of a step are
Python floats, rounded to that type when they meet a tensor.

Example:
    >>> import numpy as np
    >>> reference = ReferenceAdam({"x": np.ones(2)}, ReferenceConfig(lr=0.1, eps=0.0))
    >>> reference.step({"x": np.array([2.0, -3.0])})
    >>> reference.params["x"]
    array([0.9, 1.1])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[Any]


@dataclass(frozen=True)
class ReferenceConfig:
    """Hyperparameters of one group; the names and defaults are those of the contract."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-16
    weight_decay: float = 0.0
    weight_decay_mode: Literal["decoupled", "decoupled_absolute", "coupled"] = "decoupled"
    amsgrad: bool = False
    epsilon_placement: Literal["eps_hat", "plain"] = "eps_hat"
    maximum_of: Literal["raw", "bias_corrected"] = "raw"
    bias_correction: bool = True
    schedule: Literal["constant", "inverse_sqrt"] = "constant"
    bounds: tuple[float, float] = (-math.inf, math.inf)
    maximize: bool = False

    def lr_at(self, run_step: int) -> float:
        return self.lr / math.sqrt(run_step) if self.schedule == "inverse_sqrt" else self.lr


class ReferenceAdam:
    """All tensors of a run.

    Args:
        params: name -> initial value; copied.
        config: of every tensor, or name -> config for groups.
    """

    def __init__(
        self, params: Mapping[str, Tensor], config: ReferenceConfig | Mapping[str, ReferenceConfig] | None = None
    ) -> None:
        one = config if isinstance(config, ReferenceConfig) else ReferenceConfig()
        self.configs = dict(config) if isinstance(config, Mapping) else dict.fromkeys(params, one)
        self.params = {name: value.copy() for name, value in params.items()}
        self.exp_avg = {name: np.zeros_like(value) for name, value in params.items()}
        self.exp_avg_sq = {name: np.zeros_like(value) for name, value in params.items()}
        self.max_exp_avg_sq = {name: np.zeros_like(value) for name, value in params.items()}
        self.t = dict.fromkeys(params, 0)
        self.run_step = 0

    def step(self, grads: Mapping[str, Tensor], run_step: int | None = None) -> None:
        """One step. A tensor without a gradient is absent: neither its values nor its t change.

        ``run_step`` (from 1) is what schedules see; left out, the next one.
        """
        self.run_step = self.run_step + 1 if run_step is None else run_step
        for name, gradient in grads.items():
            with np.errstate(all="ignore"):
                self._step_tensor(name, gradient, self.configs[name])

    def block(self, grads: Sequence[Mapping[str, Tensor]], run_step: int | None = None) -> list[dict[str, Tensor]]:
        """K steps in order, the first being ``run_step``; returns the parameters after each of them."""
        trajectory = []
        for k, present in enumerate(grads):
            self.step(present, None if run_step is None else run_step + k)
            trajectory.append({name: value.copy() for name, value in self.params.items()})
        return trajectory

    def _step_tensor(self, name: str, gradient: Tensor, config: ReferenceConfig) -> None:
        p = self.params[name]
        scalar = p.dtype.type
        g = -gradient.astype(p.dtype) if config.maximize else gradient.astype(p.dtype)
        lr = config.lr_at(self.run_step)
        beta1, beta2 = config.betas
        wd = config.weight_decay

        # 1. weight decay
        if config.weight_decay_mode == "decoupled":
            p = p * scalar(1 - lr * wd)
        elif config.weight_decay_mode == "decoupled_absolute":
            p = p * scalar(1 - wd)
        elif config.weight_decay != 0:  # torch leaves the term out; 0 times an infinite parameter would be NaN
            g = g + scalar(wd) * p

        # 2. moments
        m = scalar(beta1) * self.exp_avg[name] + scalar(1 - beta1) * g
        v = scalar(beta2) * self.exp_avg_sq[name] + scalar(1 - beta2) * g * g

        # 4. the tensor's own t, and the corrections that hang on it
        t = self.t[name] + 1
        correction1 = 1 - beta1**t if config.bias_correction else 1.0
        correction2 = 1 - beta2**t if config.bias_correction else 1.0

        # 3. the maximum; np.maximum propagates NaN
        u = v / scalar(correction2) if config.maximum_of == "bias_corrected" else v
        if config.amsgrad:
            u = self.max_exp_avg_sq[name] = np.maximum(self.max_exp_avg_sq[name], u)

        # 5. the update
        if config.maximum_of == "bias_corrected":
            p = p - scalar(lr / correction1) * m / (np.sqrt(u) + scalar(config.eps))
        elif config.epsilon_placement == "eps_hat":
            p = p - scalar(lr * math.sqrt(correction2) / correction1) * m / (np.sqrt(u) + scalar(config.eps))
        else:
            root = np.sqrt(u) / scalar(math.sqrt(correction2))
            p = p - scalar(lr / correction1) * m / (root + scalar(config.eps))

        # 6. projection; np.clip propagates NaN
        low, high = config.bounds
        p = np.clip(p, scalar(low), scalar(high))

        self.params[name], self.exp_avg[name], self.exp_avg_sq[name], self.t[name] = p, m, v, t
