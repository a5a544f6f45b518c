"""What the hyperparameters of every optimizer but Adam, whose file stays as it is, have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite, isnan
from typing import Self

from gradwire.server.optimizers.schedules import Schedule, learning_rate
from gradwire.wire.errors import InvalidHyperparameter


@dataclass(frozen=True, kw_only=True)
class Group:
    """A learning rate, bounds, and which way is up. Raises InvalidHyperparameter, as its subclasses do."""

    lr: float
    schedule: Schedule = Schedule.CONSTANT
    low: float = -inf
    high: float = inf
    maximize: bool = False

    def __post_init__(self) -> None:
        self.check_not_negative("lr")
        if isnan(self.low) or isnan(self.high) or not self.low <= self.high:
            raise InvalidHyperparameter(f"bounds are [{self.low}, {self.high}]; expected low <= high", field="bounds")

    def check_not_negative(self, *names: str) -> None:
        """Raises unless these numbers are finite and >= 0."""
        for name in names:
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise InvalidHyperparameter(f"{name} is {value}; expected a finite number >= 0", field=name)

    def check_decay(self, *names: str) -> None:
        """Raises unless these numbers are in [0, 1)."""
        for name in names:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise InvalidHyperparameter(f"{name} is {value}; expected 0 <= {name} < 1", field=name)

    def learning_rate(self, step: int) -> float:
        """See `Hyperparameters`. What depends on a tensor's own t is no part of it."""
        return learning_rate(self.schedule, self.lr, step)

    def replace(self, changes: Mapping[str, float]) -> Self:
        """See `Hyperparameters`."""
        return dataclasses.replace(self, **changes) if changes else self  # type: ignore[arg-type]
