"""Learning rate as a function of the run's step."""

from __future__ import annotations

from enum import IntEnum
from math import sqrt


class Schedule(IntEnum):
    """How the learning rate depends on the step t = 1, 2, 3, ..."""

    CONSTANT = 1
    INVERSE_SQRT = 2


def learning_rate(schedule: int, lr: float, step: int) -> float:
    """The learning rate in force at ``step``. Compiled into the host function of each optimizer as well."""
    if schedule == 2:
        return lr / sqrt(step)
    return lr
