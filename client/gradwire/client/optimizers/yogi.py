"""Yogi."""

from __future__ import annotations

from dataclasses import dataclass

from gradwire.client.optimizers.numbers import pair, truth
from gradwire.client.optimizers.optimizer import Common
from gradwire.v1 import run_pb2


@dataclass(frozen=True, kw_only=True)
class Yogi(Common):
    """Yogi (Zaheer, Reddi, Sachan, Kale and Kumar 2018): Adam with ``v -= (1-b2)*sign(v - g*g)*g*g``.

    Numbers are those of ``torch_optimizer.Yogi``, except that the first moment begins with 0, as in the paper.

    Args (beside those of `Adam` with the same names):
        lr: learning rate, >= 0.
        betas: of the first and second moment, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: ``g += weight_decay*p`` (L2), >= 0.
        initial_accumulator_value: what the second moment begins with, >= 0.
        bias_correction: False leaves out all ``1-b^t``, as the paper does.
    """

    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-3
    weight_decay: float = 0.0
    initial_accumulator_value: float = 1e-6
    bias_correction: bool = True

    @property
    def slots(self) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def to_group(self) -> run_pb2.Group:
        beta1, beta2 = pair("betas", self.betas)
        message = run_pb2.Yogi(
            beta1=beta1,
            beta2=beta2,
            bias_correction=truth("bias_correction", self.bias_correction),
            **self._numbers("lr", "eps", "weight_decay", "initial_accumulator_value"),
            **self._common(),
        )
        return run_pb2.Group(yogi=message)
