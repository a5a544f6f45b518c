"""The hyperparameters of a group are checked when they are made, NaN included, and when they are changed."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest

from gradwire.server.optimizers.adam import (
    SLOTS,
    AdamHyperparameters,
    EpsilonPlacement,
    MaximumOf,
    WeightDecayMode,
)
from gradwire.wire.errors import InvalidHyperparameter

NAN, INF = math.nan, math.inf
BAD: list[tuple[str, float]] = [
    *itertools.product(("lr", "eps", "weight_decay"), (NAN, INF, -INF, -1e-300, -1.0)),
    *itertools.product(("beta1", "beta2"), (NAN, INF, -INF, -1e-9, 1.0, 2.0)),
]
GOOD: list[tuple[str, float]] = [
    *itertools.product(("lr", "eps", "weight_decay"), (0.0, 1e-300, 0.5, 1e6)),
    *itertools.product(("beta1", "beta2"), (0.0, 0.5, math.nextafter(1.0, 0.0))),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_number_out_of_range_is_refused_at_creation_and_as_a_change(name: str, value: float) -> None:
    with pytest.raises(InvalidHyperparameter, match=f"{name} is {value}; expected") as caught:
        AdamHyperparameters(**{name: value})  # type: ignore[arg-type]
    assert caught.value.metadata == {"field": name}
    with pytest.raises(InvalidHyperparameter, match=f"{name} is {value}; expected"):
        AdamHyperparameters().replace({name: value})


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_number_at_the_edge_of_its_range_is_accepted(name: str, value: float) -> None:
    assert getattr(AdamHyperparameters(**{name: value}), name) == value  # type: ignore[arg-type]
    assert getattr(AdamHyperparameters().replace({name: value}), name) == value


@pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), (NAN, 1.0), (-1.0, NAN), (NAN, NAN), (INF, -INF), (INF, 0.0)])
def test_bounds_that_cross_are_refused(low: float, high: float) -> None:
    with pytest.raises(InvalidHyperparameter, match="expected low <= high") as caught:
        AdamHyperparameters(low=low, high=high)
    assert caught.value.metadata == {"field": "bounds"}


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 0.0), (-INF, INF), (-INF, 0.0), (0.0, INF)])
def test_bounds_that_do_not_cross_are_accepted(low: float, high: float) -> None:
    group = AdamHyperparameters(low=low, high=high)
    assert group.constants()[-2:] == (low, high)


def test_one_bound_changed_is_checked_against_the_other() -> None:
    group = AdamHyperparameters(low=-1, high=1)
    with pytest.raises(InvalidHyperparameter, match=r"\[2.0, 1\]"):
        group.replace({"low": 2.0})
    assert group.replace({"low": 0.5}).low == 0.5


@pytest.mark.parametrize(
    "missing",
    [{"amsgrad": False}, {"bias_correction": False}, {"epsilon_placement": EpsilonPlacement.EPS_HAT}],
    ids=str,
)
def test_maximum_of_the_corrected_moment_needs_what_it_is_defined_with(missing: dict[str, Any]) -> None:
    whole: dict[str, Any] = {
        "maximum_of": MaximumOf.BIAS_CORRECTED,
        "amsgrad": True,
        "bias_correction": True,
        "epsilon_placement": EpsilonPlacement.PLAIN,
    }
    AdamHyperparameters(**whole)
    with pytest.raises(InvalidHyperparameter, match="BIAS_CORRECTED needs"):
        AdamHyperparameters(**whole | missing)


def test_defaults_are_labmls() -> None:
    assert dataclasses.asdict(AdamHyperparameters()) == {
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-16,
        "weight_decay": 0.0,
        "weight_decay_mode": WeightDecayMode.DECOUPLED,
        "amsgrad": False,
        "epsilon_placement": EpsilonPlacement.EPS_HAT,
        "maximum_of": MaximumOf.RAW,
        "bias_correction": True,
        "schedule": 1,
        "low": -INF,
        "high": INF,
        "maximize": False,
    }


def test_only_amsgrad_keeps_a_maximum() -> None:
    assert AdamHyperparameters().kernel.used_slots == SLOTS[:2]
    assert AdamHyperparameters(amsgrad=True).kernel.used_slots == SLOTS


def test_maximize_is_a_choice_of_the_kernel() -> None:
    """It is no number: no override can name it, and it keeps no other state."""
    up, down = AdamHyperparameters(maximize=True), AdamHyperparameters()
    assert up.kernel != down.kernel
    assert up.kernel.used_slots == down.kernel.used_slots
    assert up.replace({"lr": 0.5}).maximize


def test_changing_numbers_compiles_nothing_new() -> None:
    """Kernels are compiled for choices, not for numbers: a learning rate schedule must not compile at every step."""
    group = AdamHyperparameters(amsgrad=True)
    changed = group.replace({"lr": 0.5, "beta1": 0.1, "eps": 1e-3, "low": -1.0})
    assert changed.kernel == group.kernel
    assert hash(changed.kernel) == hash(group.kernel)


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_scalars_of_a_block_are_those_of_its_single_steps(steps: int) -> None:
    """No running products: they drift, and a block would differ from the same steps one by one."""
    group = AdamHyperparameters(lr=0.01, weight_decay=0.1)
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        block = group.varying(first_step=50, first_t=20, steps=steps, dtype=dtype)
        single = [group.varying(first_step=50 + k, first_t=20 + k, steps=1, dtype=dtype)[0] for k in range(steps)]
        assert block.dtype == dtype
        assert np.array_equal(block, np.array(single))
