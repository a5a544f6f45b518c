"""Gradient descent with momentum."""

from __future__ import annotations

from dataclasses import dataclass

from gradwire.client.optimizers.numbers import number, truth
from gradwire.client.optimizers.optimizer import TorchCommon
from gradwire.v1 import run_pb2


@dataclass(frozen=True, kw_only=True)
class SGD(TorchCommon):
    """``torch.optim.SGD``, its numbers and its defaults.

    With pseudo-gradients (parameters before local steps minus parameters after them) ``SGD(lr=1)`` is FedAvg,
    ``SGD(lr=1, momentum=0.9)`` FedAvgM, ``SGD(lr=0.7, momentum=0.9, nesterov=True)`` the outer optimizer of DiLoCo.

    Args (beside those of `Adam` with the same names):
        lr: learning rate, >= 0.
        momentum: >= 0; with 0 the server keeps no state, and it cannot change to or from 0 during a run.
        dampening: ``buffer = momentum*buffer + (1-dampening)*gradient``.
        weight_decay: ``g += weight_decay*p`` (L2), >= 0.
        nesterov: needs momentum > 0 and dampening 0.
        foreach, fused: taken and without effect.
        differentiable: False only.
    """

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if number("momentum", self.momentum) > 0 else ()

    def to_group(self) -> run_pb2.Group:
        numbers = self._numbers("lr", "momentum", "dampening", "weight_decay")
        return run_pb2.Group(sgd=run_pb2.Sgd(**numbers, nesterov=truth("nesterov", self.nesterov), **self._common()))
