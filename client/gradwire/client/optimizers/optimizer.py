"""What every preset is, and what all but Adam's share."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from gradwire.client.optimizers.numbers import number, pair, truth
from gradwire.v1 import run_pb2

SCHEDULES = {"constant": run_pb2.Adam.SCHEDULE_CONSTANT, "inverse-sqrt": run_pb2.Adam.SCHEDULE_INVERSE_SQRT}


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """An update rule and its hyperparameters, for a run or for one group of it."""

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """A copy with other hyperparameters. Raises TypeError for a name that there is none of."""
        names = {field.name for field in dataclasses.fields(self)}
        for name in changes:
            if name not in names:
                raise TypeError(
                    f"{type(self).__name__} has no hyperparameter {name!r}; expected one of {sorted(names)}"
                )
        return dataclasses.replace(self, **changes)

    @property
    @abstractmethod
    def slots(self) -> tuple[str, ...]:
        """The state vectors that the server keeps for it."""

    @abstractmethod
    def to_group(self) -> run_pb2.Group:
        """This choice in the contract's words; without tensors."""


@dataclass(frozen=True, kw_only=True)
class Common(Optimizer):
    """Hyperparameters that every optimizer has.

    Args:
        schedule: ``"constant"``, or ``"inverse-sqrt"``: lr/sqrt(t) at the run's step t = 1, 2, ...
        bounds: (low, high), every element is clamped to them after each step; None: no bounds.
        maximize: go up: the sign of the gradient is turned first.

    Raises ValueError or TypeError for a malformed argument; ranges are checked by the server (InvalidHyperparameter).
    """

    schedule: str = "constant"
    bounds: tuple[float, float] | None = None
    maximize: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; expected one of {', '.join(map(repr, SCHEDULES))}")
        self.to_group()  # reads each number and each truth

    def _common(self) -> dict[str, Any]:
        """These as fields of a message."""
        found: dict[str, Any] = {
            "schedule": SCHEDULES[self.schedule],
            "maximize": truth("maximize", self.maximize),
        }
        if self.bounds is not None:
            found["low"], found["high"] = pair("bounds", self.bounds)
        return found

    def _numbers(self, *names: str) -> dict[str, Any]:
        """These hyperparameters as Python floats. Raises TypeError."""
        return {name: number(name, getattr(self, name)) for name in names}


@dataclass(frozen=True, kw_only=True)
class TorchCommon(Common):
    """What torch's optimizers take beside.

    Args:
        foreach, fused: taken and without effect: they choose how torch computes where it runs itself.
        differentiable: False only; a remote step cannot be differentiated.

    Raises NotImplementedError for what is not supported.
    """

    foreach: bool | None = None
    fused: bool | None = None
    differentiable: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("foreach", "fused"):
            if getattr(self, name) is not None:
                truth(name, getattr(self, name))
        if truth("differentiable", self.differentiable):
            raise NotImplementedError("differentiable=True is not supported: the step runs on a server")
