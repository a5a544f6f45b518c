"""Adagrad."""

from __future__ import annotations

from dataclasses import dataclass

from gradwire.client.optimizers.optimizer import TorchCommon
from gradwire.v1 import run_pb2


@dataclass(frozen=True, kw_only=True)
class Adagrad(TorchCommon):
    """``torch.optim.Adagrad`` (Duchi, Hazan and Singer 2011), its numbers and its defaults.

    Args (beside those of `Adam` with the same names):
        lr: learning rate, >= 0.
        lr_decay: the step's learning rate is ``lr / (1 + (t-1)*lr_decay)``, t being the tensor's own; >= 0. A receipt
            names lr without it.
        weight_decay: ``g += weight_decay*p`` (L2), >= 0.
        initial_accumulator_value: what the sum of squares begins with, >= 0.
        eps: added to the denominator, >= 0.
        foreach, fused: taken and without effect.
        differentiable: False only.
    """

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    @property
    def slots(self) -> tuple[str, ...]:
        return ("sum",)

    def to_group(self) -> run_pb2.Group:
        numbers = self._numbers("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")
        return run_pb2.Group(adagrad=run_pb2.Adagrad(**numbers, **self._common()))
