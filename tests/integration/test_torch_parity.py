"""`TorchAdam` and `TorchAdamW` against ``torch.optim``, over a real channel.

Tolerance. The formulas are the same, the order of roundings is not (torch writes ``m + (1-b1)*(g-m)`` and divides
before it multiplies by the step size). Each of the STEPS steps may therefore differ by one rounding of the parameter,
half an ulp on each side, and by some roundings of an update, of which lr = 0.01 makes a hundredth: STEPS ulps of the
largest parameter. A wrong formula shows far above that: one group's gradients are about as small as eps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gradwire.client import ParamGroup, Server, TorchAdam, TorchAdamW, WeightDecay

STEPS = 30
SHAPES: dict[str, tuple[int, ...]] = {"weight": (8, 5), "bias": (8,), "scale": (), "tiny": (300,)}
FLOATS = [pytest.param(np.float32, id="float32"), pytest.param(np.float64, id="float64")]
PRESETS = {"adam": (TorchAdam, torch.optim.Adam), "adamw": (TorchAdamW, torch.optim.AdamW)}

Tensor = npt.NDArray[Any]


def values(dtype: type[np.floating[Any]], seed: int) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def gradients(dtype: type[np.floating[Any]], step: int) -> dict[str, Tensor]:
    """Of size 1, and of the size of eps for one tensor; from step 10 to 15 the bias has none."""
    grads = values(dtype, 1000 + step)
    grads["tiny"] = grads["tiny"] * dtype(1e-8)
    if 10 <= step < 15:
        del grads["bias"]
    return grads


def assert_close(found: Tensor, expected: torch.Tensor) -> None:
    largest = float(expected.abs().max())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=STEPS * np.finfo(found.dtype).eps * largest)


def torch_parameters(params: dict[str, Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in params.items()}


def set_gradients(params: dict[str, torch.Tensor], grads: dict[str, Tensor]) -> None:
    for name, parameter in params.items():
        parameter.grad = torch.from_numpy(grads[name]) if name in grads else None


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_groups_equal_torch(server: Server, preset: str, amsgrad: bool, dtype: type[np.floating[Any]]) -> None:
    """Three groups with hyperparameters of their own; the last one overturns the optimizer's amsgrad."""
    ours, theirs = PRESETS[preset]
    start = values(dtype, 0)
    groups: list[tuple[list[str], dict[str, Any]]] = [
        (["weight", "bias"], {}),
        (["scale"], {"lr": 3e-3, "betas": (0.5, 0.9), "weight_decay": 0.3}),
        (["tiny"], {"eps": 1e-7, "amsgrad": not amsgrad}),
    ]
    expected = torch_parameters(start)
    optimizer = theirs(
        [{"params": [expected[name] for name in names], **changes} for names, changes in groups],
        lr=1e-2,
        amsgrad=amsgrad,
    )
    with server.create_run(
        f"torch-{preset}-{amsgrad}-{dtype.__name__}",
        [ParamGroup({name: start[name] for name in names}, **changes) for names, changes in groups],
        ours(lr=1e-2, amsgrad=amsgrad),
    ) as run:
        assert run.dtype == dtype
        for step in range(STEPS):
            grads = gradients(dtype, step)
            set_gradients(expected, grads)
            optimizer.step()
            run.step(grads)
            for name, found in run.params.items():
                assert_close(found, expected[name])


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("weight_decay", [1e-2, 0.5])
def test_weight_decay_coupled_and_decoupled(server: Server, weight_decay: float, decoupled: bool) -> None:
    """The kind of decay can be said in words, whatever the preset's own kind is."""
    start = values(np.float64, 1)
    expected = torch_parameters(start)
    theirs = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = theirs(expected.values(), lr=1e-2, weight_decay=weight_decay, amsgrad=True)
    decay = WeightDecay(weight_decay, weight_decouple=decoupled)
    ours = (TorchAdam if decoupled else TorchAdamW)(lr=1e-2, weight_decay=decay, amsgrad=True)
    with server.create_run(f"decay-{decoupled}-{weight_decay}", start, ours) as run:
        for step in range(STEPS):
            grads = gradients(np.float64, step)
            set_gradients(expected, grads)
            optimizer.step()
            run.step(grads)
        for name, found in run.params.items():
            assert_close(found, expected[name])


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_maximize_of_one_group(server: Server, preset: str, amsgrad: bool) -> None:
    """Coupled decay comes after the turned sign, so that it still pulls towards zero; the other group goes down."""
    ours, theirs = PRESETS[preset]
    start = values(np.float64, 3)
    names = list(SHAPES)
    split: list[tuple[list[str], dict[str, Any]]] = [(names[:2], {"maximize": True}), (names[2:], {})]
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.3, "amsgrad": amsgrad}
    expected = torch_parameters(start)
    optimizer = theirs([{"params": [expected[name] for name in part], **own} for part, own in split], **options)
    groups = [ParamGroup({name: start[name] for name in part}, **own) for part, own in split]
    with server.create_run(f"maximize-{preset}-{amsgrad}", groups, ours(**options)) as run:
        assert [group.adam.maximize for group in run.describe().spec.groups] == [True, False]
        for step in range(STEPS):
            grads = gradients(np.float64, step)
            set_gradients(expected, grads)
            optimizer.step()
            run.step(grads, lr=[1e-2, 1e-2])
        for name, found in run.params.items():
            assert_close(found, expected[name])


def test_a_local_scheduler_drives_the_learning_rate(server: Server) -> None:
    """torch's scheduler halves one group's lr every 10 steps; the run is told with ``lr=``."""
    start = values(np.float64, 2)
    expected = torch_parameters(start)
    names = list(SHAPES)
    optimizer = torch.optim.Adam(
        [{"params": [expected[name] for name in names[:2]]}, {"params": [expected[name] for name in names[2:]]}],
        lr=1e-2,
    )
    halve, keep = (lambda step: 0.5 ** (step // 10)), (lambda step: 1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [halve, keep])
    groups = [ParamGroup({name: start[name] for name in part}) for part in (names[:2], names[2:])]
    with server.create_run("scheduler", groups, TorchAdam(lr=1e-2)) as run:
        for step in range(STEPS):
            grads = gradients(np.float64, step)
            rates = [group["lr"] for group in optimizer.param_groups]
            set_gradients(expected, grads)
            optimizer.step()
            scheduler.step()
            assert run.step(grads, lr=rates).learning_rates == tuple(rates)
        for name, found in run.params.items():
            assert_close(found, expected[name])
    assert rates == [2.5e-3, 1e-2]
