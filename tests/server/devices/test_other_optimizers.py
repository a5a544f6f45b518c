"""SGD, Adagrad, Yogi and the FedOpt family on each device against their formulas, and against torch where it has them.

Tolerance: the formulas' order of roundings is the kernels', their scalars may differ in the last bit of a float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gradwire.server.devices.base import Device
from gradwire.server.optimizers.adagrad import AdagradHyperparameters
from gradwire.server.optimizers.base import Hyperparameters, initial_values
from gradwire.server.optimizers.fed_opt import FedOptHyperparameters
from gradwire.server.optimizers.fed_opt import Rule as FedRule
from gradwire.server.optimizers.schedules import Schedule
from gradwire.server.optimizers.sgd import SgdHyperparameters
from gradwire.server.optimizers.yogi import YogiHyperparameters
from tests.reference_optimizers import Adagrad, FedOpt, ReferenceRun, Rule, Sgd, Yogi
from tests.server.devices.harness import FLOATS, SIMULATED, Tensor, download_state, segment, upload

each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)
STEPS = 20
SIZE = 11 if SIMULATED else 3000

PAIRS: list[tuple[Rule, Hyperparameters]] = [
    (Sgd(lr=0.1, weight_decay=0.1), SgdHyperparameters(lr=0.1, weight_decay=0.1)),
    (
        Sgd(lr=0.1, momentum=0.9, dampening=0.5, maximize=True, bounds=(-1.0, 1.5)),
        SgdHyperparameters(lr=0.1, momentum=0.9, dampening=0.5, maximize=True, low=-1.0, high=1.5),
    ),
    (
        Sgd(lr=0.7, momentum=0.9, nesterov=True, schedule="inverse_sqrt"),
        SgdHyperparameters(lr=0.7, momentum=0.9, nesterov=True, schedule=Schedule.INVERSE_SQRT),
    ),
    (
        Adagrad(lr=0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.3),
        AdagradHyperparameters(lr=0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.3),
    ),
    (Yogi(lr=0.1, weight_decay=0.1), YogiHyperparameters(lr=0.1, weight_decay=0.1)),
    (Yogi(bias_correction=False), YogiHyperparameters(bias_correction=False)),
    (FedOpt(rule="adam"), FedOptHyperparameters(rule=FedRule.ADAM)),
    (FedOpt(rule="yogi", tau=0.3), FedOptHyperparameters(rule=FedRule.YOGI, tau=0.3)),
    (FedOpt(rule="adagrad", betas=(0.0, 0.0)), FedOptHyperparameters(rule=FedRule.ADAGRAD, beta1=0.0, beta2=0.0)),
    (FedOpt(rule="amsgrad", tau=0.9), FedOptHyperparameters(rule=FedRule.AMSGRAD, tau=0.9)),
]


def draws(seed: int, *shape: int, dtype: np.dtype[Any]) -> Any:
    """Of many sizes, so that second moments grow and shrink."""
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) * random.choice([0.01, 1.0, 3.0], size=shape)).astype(dtype)


def trained(device: Device, group: Hyperparameters, params: Tensor, grads: Tensor, cut: int = 4) -> dict[str, Tensor]:
    """The state after all steps, in two blocks; it begins as a run does."""
    dtype, steps = params.dtype, len(grads)
    state = device.allocate_state(group.kernel.used_slots, params.size, dtype)
    device.write(state.params, 0, params[None])
    for slot, value in initial_values(group).items():
        device.write(state.slots[slot], 0, np.full((1, params.size), value, dtype))
    for first, stop in ((0, cut), (cut, steps)):
        part = segment(group, 0, params.size, dtype, step=first + 1, t=first + 1, steps=stop - first)
        device.update(state, upload(device, grads[first:stop]), [part])
    return download_state(device, state)


@each_float
@pytest.mark.parametrize(("rule", "group"), PAIRS, ids=str)
def test_device_equals_the_formulas(device: Device, rule: Rule, group: Hyperparameters, dtype: np.dtype[Any]) -> None:
    params, grads = draws(0, SIZE, dtype=dtype), draws(1, STEPS, SIZE, dtype=dtype)
    grads[:, 0] = 0
    reference = ReferenceRun({"x": params}, rule)
    for row in grads:
        reference.step({"x": row})
    found = trained(device, group, params, grads)
    tolerance = STEPS * np.finfo(dtype).eps
    for name, expected in {"params": reference.params["x"], **reference.slots["x"]}.items():
        size = float(np.abs(expected).max())
        np.testing.assert_allclose(found[name], expected, rtol=tolerance, atol=tolerance * size, err_msg=name)
    assert set(found) == {"params", *reference.slots["x"]}


TORCH: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 0.7, "momentum": 0.9, "nesterov": True, "maximize": True}),
    (torch.optim.Adagrad, {}),
    (
        torch.optim.Adagrad,
        {
            "lr": 0.1,
            "lr_decay": 0.1,
            "weight_decay": 0.1,
            "initial_accumulator_value": 0.2,
            "eps": 1e-3,
            "maximize": True,
        },
    ),
]


@each_float
@pytest.mark.parametrize(("kind", "options"), TORCH, ids=str)
def test_device_equals_torch(
    device: Device, kind: type[torch.optim.Optimizer], options: dict[str, Any], dtype: np.dtype[Any]
) -> None:
    """torch may fuse a multiplication and an addition: single roundings differ, STEPS of them at most."""
    params, grads = draws(0, SIZE, dtype=dtype), draws(1, STEPS, SIZE, dtype=dtype)
    theirs = torch.from_numpy(params.copy())
    optimizer = kind([theirs], **options)
    for row in grads:
        theirs.grad = torch.from_numpy(row.copy())
        optimizer.step()
    ours = SgdHyperparameters if kind is torch.optim.SGD else AdagradHyperparameters
    found = trained(device, ours(**options), params, grads)
    state = {key: value for key, value in optimizer.state[theirs].items() if key in found and value is not None}
    tolerance = 4 * STEPS * np.finfo(dtype).eps
    for name, expected in {"params": theirs, **state}.items():
        size = float(expected.abs().max())
        np.testing.assert_allclose(found[name], expected.numpy(), rtol=tolerance, atol=tolerance * size, err_msg=name)
    assert set(found) == {"params", *state}


def test_defaults_are_torch_s() -> None:
    for kind, ours in ((torch.optim.SGD, SgdHyperparameters()), (torch.optim.Adagrad, AdagradHyperparameters())):
        defaults = kind([torch.zeros(1)]).defaults
        same = {name for name in ours.__dataclass_fields__ if name in defaults}
        assert {name: getattr(ours, name) for name in same} == {name: defaults[name] for name in same}
        assert len(same) >= 6
