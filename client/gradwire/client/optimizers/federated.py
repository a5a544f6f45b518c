"""FedAdam, FedYogi, FedAdagrad and FedAMSGrad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradwire.client.optimizers.numbers import pair
from gradwire.client.optimizers.optimizer import Common
from gradwire.v1 import run_pb2


@dataclass(frozen=True, kw_only=True)
class FedAdam(Common):
    """FedAdam (Reddi et al., "Adaptive Federated Optimization", 2021, Algorithm 2), for pseudo-gradients: parameters
    before local steps minus parameters after them.

    ``p -= lr * m/(sqrt(v)+tau)``; no bias is corrected, and v begins with tau^2.

    Args (beside those of `Adam` with the same names):
        lr: the server's learning rate, >= 0.
        betas: of m and v, each in [0, 1). With a first of 0 the server keeps no m, and it cannot change to or from 0
            during a run.
        tau: how adaptive the step is, >= 0.
    """

    _rule: ClassVar[run_pb2.FedOpt.Rule.ValueType] = run_pb2.FedOpt.RULE_ADAM

    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    tau: float = 1e-3

    @property
    def slots(self) -> tuple[str, ...]:
        first = ("exp_avg",) if pair("betas", self.betas)[0] > 0 else ()
        last = ("max_exp_avg_sq",) if self._rule == run_pb2.FedOpt.RULE_AMSGRAD else ()
        return (*first, "exp_avg_sq", *last)

    def to_group(self) -> run_pb2.Group:
        beta1, beta2 = pair("betas", self.betas)
        numbers = self._numbers("lr", "tau")
        message = run_pb2.FedOpt(beta1=beta1, beta2=beta2, rule=self._rule, **numbers, **self._common())
        return run_pb2.Group(fed_opt=message)


@dataclass(frozen=True, kw_only=True)
class FedYogi(FedAdam):
    """FedYogi: as FedAdam, with ``v -= (1-b2)*sign(v - g*g)*g*g``."""

    _rule: ClassVar[run_pb2.FedOpt.Rule.ValueType] = run_pb2.FedOpt.RULE_YOGI


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(FedAdam):
    """FedAdagrad: as FedAdam, with ``v += g*g``, and without momentum unless ``betas`` has one, as in the paper."""

    _rule: ClassVar[run_pb2.FedOpt.Rule.ValueType] = run_pb2.FedOpt.RULE_ADAGRAD

    betas: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class FedAMSGrad(FedAdam):
    """FedAMSGrad (Wang, Lin and Chen 2022): as FedAdam, with the maximum of v over all steps in the denominator."""

    _rule: ClassVar[run_pb2.FedOpt.Rule.ValueType] = run_pb2.FedOpt.RULE_AMSGRAD
