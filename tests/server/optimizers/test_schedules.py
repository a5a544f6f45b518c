"""Learning rate as a function of the run's step, in Python and as the optimizer's compiled host function has it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.optimizers.schedules import Schedule, learning_rate

STEPS = [1, 2, 3, 4, 100, 10**6, 10**9]


@pytest.mark.parametrize("step", STEPS)
def test_constant(step: int) -> None:
    assert learning_rate(Schedule.CONSTANT, 0.3, step) == 0.3


@pytest.mark.parametrize("step", STEPS)
def test_inverse_square_root(step: int) -> None:
    assert learning_rate(Schedule.INVERSE_SQRT, 0.5, step) == 0.5 / math.sqrt(step)


@pytest.mark.parametrize("schedule", Schedule)
def test_compiled_and_reported_rates_agree(schedule: Schedule) -> None:
    """The receipt says what the kernel used. Without correction the step size is the learning rate itself."""
    group = AdamHyperparameters(lr=0.5, schedule=schedule, bias_correction=False)
    varying = group.varying(first_step=9, first_t=1, steps=5, dtype=np.dtype(np.float64))
    assert varying[:, 1].tolist() == [group.learning_rate(9 + k) for k in range(5)]


def test_schedule_sees_the_runs_step_and_bias_correction_the_tensors() -> None:
    group = AdamHyperparameters(lr=1.0, beta1=0.5, beta2=0.75, schedule=Schedule.INVERSE_SQRT)
    varying = group.varying(first_step=100, first_t=2, steps=1, dtype=np.dtype(np.float64))
    rate = 1 / math.sqrt(100)
    correction1, correction2 = 1 - 0.5**2, 1 - 0.75**2
    assert varying[0].tolist() == pytest.approx(
        [1.0, rate * math.sqrt(correction2) / correction1, math.sqrt(correction2), correction2], rel=1e-15
    )
