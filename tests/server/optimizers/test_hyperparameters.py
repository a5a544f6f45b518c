"""What every optimizer has to promise: checked numbers, kernels that are compiled for choices, scalars that do not
drift."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from gradwire.server.optimizers.adagrad import AdagradHyperparameters
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.optimizers.base import initial_values, numbers
from gradwire.server.optimizers.fed_opt import FedOptHyperparameters, Rule
from gradwire.server.optimizers.known import OPTIMIZERS, name_of
from gradwire.server.optimizers.schedules import Schedule
from gradwire.server.optimizers.sgd import SgdHyperparameters
from gradwire.server.optimizers.yogi import YogiHyperparameters
from gradwire.v1 import run_pb2
from gradwire.wire.errors import InvalidHyperparameter

NAN, INF = math.nan, math.inf
each_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
CASES = [(kind, name) for kind in OPTIMIZERS.values() for name in numbers(kind)]


@pytest.mark.parametrize(("kind", "name"), CASES, ids=str)
def test_no_number_may_be_nan_at_creation_nor_as_a_change(kind: Any, name: str) -> None:
    with pytest.raises(InvalidHyperparameter, match=f"{name} is nan|bounds are"):
        kind(**{name: NAN})
    with pytest.raises(InvalidHyperparameter, match=f"{name} is nan|bounds are"):
        kind().replace({name: NAN})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *itertools.product([SgdHyperparameters], ("lr", "momentum", "weight_decay"), (-1.0, INF)),
        *itertools.product([SgdHyperparameters], ("dampening",), (-INF, INF)),
        *itertools.product(
            [AdagradHyperparameters],
            ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"),
            (-1e-300, INF),
        ),
        *itertools.product([YogiHyperparameters, FedOptHyperparameters], ("beta1", "beta2"), (-1e-9, 1.0, INF)),
        *itertools.product([YogiHyperparameters], ("eps", "weight_decay", "initial_accumulator_value"), (-1.0, INF)),
        *itertools.product([FedOptHyperparameters], ("lr", "tau"), (-1.0, INF)),
    ],
    ids=str,
)
def test_number_out_of_range_is_refused(kind: Any, name: str, value: float) -> None:
    with pytest.raises(InvalidHyperparameter, match=f"{name} is {value}; expected") as caught:
        kind(**{name: value})
    assert caught.value.metadata == {"field": name}
    with pytest.raises(InvalidHyperparameter):
        kind().replace({name: value})


@each_optimizer
def test_bounds_that_cross_are_refused(kind: Any) -> None:
    with pytest.raises(InvalidHyperparameter, match="expected low <= high"):
        kind(low=1.0, high=-1.0)


@pytest.mark.parametrize("numbers_", [{}, {"momentum": 0.9, "dampening": 0.1}, {"dampening": -0.5}], ids=str)
def test_nesterov_needs_momentum_and_no_dampening(numbers_: dict[str, float]) -> None:
    """As ``torch.optim.SGD``; an override may not come to it either."""
    with pytest.raises(InvalidHyperparameter, match="expected momentum > 0 and dampening 0"):
        SgdHyperparameters(nesterov=True, **numbers_)  # type: ignore[arg-type]
    with pytest.raises(InvalidHyperparameter, match="nesterov"):
        SgdHyperparameters(nesterov=True, momentum=0.9).replace({"dampening": 0.1})


def test_state_is_kept_for_what_needs_it() -> None:
    used: dict[Any, tuple[str, ...]] = {
        SgdHyperparameters(): (),
        SgdHyperparameters(momentum=0.5): ("momentum_buffer",),
        FedOptHyperparameters(): ("exp_avg", "exp_avg_sq"),
        FedOptHyperparameters(beta1=0.0): ("exp_avg_sq",),
        FedOptHyperparameters(rule=Rule.AMSGRAD): ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    }
    assert {group: group.kernel.used_slots for group in used} == used


def test_slots_begin_with_what_the_formulas_say() -> None:
    assert initial_values(AdamHyperparameters(amsgrad=True)) == {}
    assert initial_values(SgdHyperparameters(momentum=0.9)) == {}
    assert initial_values(AdagradHyperparameters()) == {}
    assert initial_values(AdagradHyperparameters(initial_accumulator_value=0.5)) == {"sum": 0.5}
    assert initial_values(YogiHyperparameters()) == {"exp_avg_sq": 1e-6}
    assert initial_values(FedOptHyperparameters(tau=0.5)) == {"exp_avg_sq": 0.25}
    assert initial_values(FedOptHyperparameters(tau=0.5, rule=Rule.AMSGRAD)) == {
        "exp_avg_sq": 0.25,
        "max_exp_avg_sq": 0.25,
    }


def test_numbers_are_those_that_the_contract_can_override_but_for_what_slots_begin_with() -> None:
    overridable = {field.name for field in run_pb2.Override.DESCRIPTOR.fields} - {"group"}
    found = {name for kind in OPTIMIZERS.values() for name in numbers(kind)}
    assert found - overridable == {"initial_accumulator_value"}
    assert overridable <= found


@each_optimizer
def test_its_name_is_the_contract_s_and_so_are_those_of_its_fields(kind: Any) -> None:
    message = getattr(run_pb2.Group(), name_of(kind())).DESCRIPTOR
    assert {field.name for field in message.fields} == set(kind.__dataclass_fields__)


@each_optimizer
def test_changing_numbers_compiles_nothing_new(kind: Any) -> None:
    group = kind(momentum=0.9) if kind is SgdHyperparameters else kind()
    changed = group.replace({"lr": 0.5, "low": -1.0})
    assert changed.kernel == group.kernel
    assert hash(changed.kernel) == hash(group.kernel)


@each_optimizer
@pytest.mark.parametrize("first_t", [1, 20])
def test_scalars_of_a_block_are_those_of_its_single_steps(kind: Any, first_t: int) -> None:
    """No running products; the first step is the first wherever a block begins."""
    group = kind(lr=0.01, schedule=Schedule.INVERSE_SQRT)
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        block = group.varying(first_step=50, first_t=first_t, steps=7, dtype=dtype)
        single = [group.varying(first_step=50 + k, first_t=first_t + k, steps=1, dtype=dtype)[0] for k in range(7)]
        assert block.dtype == dtype
        assert block.shape == (7, group.kernel.varying)
        assert np.array_equal(block, np.array(single))


def test_momentum_begins_with_the_first_gradient_as_it_is() -> None:
    group = SgdHyperparameters(lr=0.5, momentum=0.9, dampening=0.25)
    found = group.varying(first_step=7, first_t=1, steps=2, dtype=np.dtype(np.float64))
    assert found.tolist() == [[0.5, 0.0, 1.0], [0.5, 0.9, 0.75]]


def test_adagrad_s_rate_decays_with_the_tensor_s_own_t() -> None:
    group = AdagradHyperparameters(lr=1.0, lr_decay=0.5)
    found = group.varying(first_step=100, first_t=1, steps=3, dtype=np.dtype(np.float64))
    assert found[:, 0].tolist() == [1.0, 1 / 1.5, 0.5]
    assert group.learning_rate(100) == 1.0
