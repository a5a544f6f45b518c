"""What a parameter and its gradient can be, remotely as locally: shapes, strides, missing gradients, shared tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gradwire.client import Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import (
    LR,
    STEPS,
    SideBySide,
    Tensors,
    assert_close,
    assert_equal,
    gradients,
    new_name,
    set_gradients,
    values,
)


def adam(params: Any) -> torch.optim.Adam:
    return torch.optim.Adam(params, lr=LR, amsgrad=True)


PRESET = TorchAdam(lr=LR, amsgrad=True)


def remote(server: Server, params: Any, **options: Any) -> RemoteOptimizer:
    return RemoteOptimizer(params, PRESET, target=server, run=new_name(), **options)


# --- how they are given ----------------------------------------------------------------------------------------------


def test_a_generator(server: Server) -> None:
    SideBySide(server, PRESET, adam, groups=lambda params: (param for param in params)).check()


def test_one_group(server: Server) -> None:
    SideBySide(server, PRESET, adam, groups=lambda params: [{"params": (param for param in params)}]).check()


def test_a_single_tensor_as_a_group(server: Server) -> None:
    SideBySide(server, PRESET, adam, groups=lambda params: [{"params": param} for param in params]).check()


def test_named_parameters(server: Server) -> None:
    """The tensors of the run have their names; ``param_names`` stands in the groups, as in torch."""
    pair = SideBySide(server, PRESET, adam, groups=lambda params: ((f"layer.{i}", p) for i, p in enumerate(params)))
    assert [tensor.name for tensor in pair.remote.run.layout.tensors] == [f"layer.{i}" for i in range(5)]
    names = [optimizer.param_groups[0]["param_names"] for optimizer in pair.optimizers]
    assert names[0] == names[1]
    pair.check()


def test_parameters_without_names_have_numbers(server: Server) -> None:
    optimizer = remote(server, values())
    assert [tensor.name for tensor in optimizer.run.layout.tensors] == [f"param_{i}" for i in range(5)]


def test_names_that_are_there_twice(server: Server) -> None:
    """Two models in one optimizer."""
    pair = SideBySide(
        server,
        PRESET,
        adam,
        groups=lambda params: [{"params": [("w", params[0]), ("w_1", params[1])]}, {"params": [("w", params[2])]}],
        params=values()[:3],
    )
    pair.check()


# --- shapes and strides ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (1, 1, 1), (5, 0, 2), (2, 3, 4, 5, 6)])
def test_a_parameter_of_its_own(server: Server, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    pair = SideBySide(server, PRESET, adam, [torch.randn(shape).requires_grad_()])
    pair.train()
    pair.assert_close()
    assert [param.shape for param in pair.there] == [shape]
    steps = [entry["step"] for optimizer in pair.optimizers for entry in optimizer.state_dict()["state"].values()]
    assert steps == [STEPS, STEPS]


def strided() -> Tensors:
    torch.manual_seed(1)
    made = [
        torch.randn(5, 4).t(),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(3, 4, 5).permute(2, 0, 1),
        torch.randn(7, 8)[:, ::2],
    ]
    assert not any(tensor.is_contiguous() for tensor in made)
    return [tensor.requires_grad_() for tensor in made]


GRADIENTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as-the-parameter": lambda p: torch.randn_like(p),
    "contiguous": lambda p: torch.randn(p.shape),
    "transposed": lambda p: torch.randn(p.shape[::-1]).permute(*reversed(range(p.dim()))),
    "expanded": lambda p: torch.randn(()).expand(p.shape),
    "sliced": lambda p: torch.randn(*p.shape[:-1], 2 * p.shape[-1])[..., 1::2],
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_strides(server: Server, kind: str) -> None:
    pair = SideBySide(server, PRESET, adam, strided())
    strides = [param.stride() for param in pair.there]
    for _ in range(STEPS):
        pair.step([GRADIENTS[kind](param) for param in pair.here])
    pair.assert_close()
    assert [param.stride() for param in pair.there] == strides


def test_parameters_that_are_views_of_one_tensor(server: Server) -> None:
    """As a flattened model has them."""
    flats = [torch.arange(12.0), torch.arange(12.0)]
    views = [[flat[:6].view(2, 3).requires_grad_(), flat[6:].requires_grad_()] for flat in flats]
    local, other = adam(views[0]), remote(server, views[1])
    for step in range(STEPS):
        for params, optimizer in zip(views, (local, other), strict=True):
            set_gradients(params, [p.detach() - step for p in params])
            optimizer.step()
    assert_close([flats[1]], [flats[0]])


@pytest.mark.parametrize("dtypes", [(torch.float64,), (torch.float32, torch.float64)], ids=["float64", "mixed"])
def test_float64(server: Server, dtypes: tuple[torch.dtype, ...]) -> None:
    """Each parameter to the tolerance of its own type: float32 ones next to float64 ones are computed in float64."""
    mixed = [tensor for dtype in dtypes for tensor in values(0, dtype)]
    pair = SideBySide(server, PRESET, adam, mixed)
    assert pair.remote.run.dtype == "float64"
    pair.check()


# --- gradients that are not there ------------------------------------------------------------------------------------


def test_gradients_that_come_and_go(server: Server) -> None:
    """Each tensor counts its own steps."""
    pair = SideBySide(server, PRESET, adam)
    for step in range(STEPS):
        present = [grad if (step >> index) % 2 else None for index, grad in enumerate(gradients(step, pair.here))]
        pair.step(present)
    pair.assert_close()
    counts = [[float(entry["step"]) for entry in o.state_dict()["state"].values()] for o in pair.optimizers]
    assert counts[0] == counts[1]
    assert len(set(counts[0])) > 1


def test_a_step_without_any_gradient_is_none(server: Server) -> None:
    """Neither before the first one nor later; hyperparameters that were changed meanwhile count for the next."""
    pair = SideBySide(server, PRESET, adam)
    nothing: list[torch.Tensor | None] = [None] * len(pair.here)
    pair.step(nothing)
    assert pair.remote.last_receipt is None
    assert_equal(pair.there, values())
    pair.train(0, 5)
    for optimizer in pair.optimizers:
        optimizer.param_groups[0]["lr"] = 0.05
    pair.step(nothing)
    assert pair.remote.run.describe().step == 5
    pair.train(5)
    pair.assert_close()


def test_frozen_parameters_stay(server: Server) -> None:
    params = values()
    params[0].requires_grad_(False)
    pair = SideBySide(server, PRESET, adam, params)
    for step in range(STEPS):
        pair.step([None, *gradients(step, pair.here)[1:]])
    pair.assert_close()
    assert_equal(pair.there[:1], params[:1])
    assert 0 not in pair.remote.state_dict()["state"]


def test_parameters_that_are_unfrozen_later(server: Server) -> None:
    models = [nn.Linear(3, 4), nn.Linear(3, 4)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model.bias.requires_grad_(False)
    optimizers = [adam(models[0].parameters()), remote(server, models[1].parameters())]
    for step in range(STEPS):
        for model, optimizer in zip(models, optimizers, strict=True):
            model.bias.requires_grad_(step >= 7)
            model.weight.requires_grad_(step < 14)
            optimizer.zero_grad()
            model(torch.full((2, 3), 0.1 * step)).square().sum().backward()
            optimizer.step()
    assert_close(list(models[1].parameters()), list(models[0].parameters()))


def test_a_parameter_that_needs_no_gradient_may_have_one(server: Server) -> None:
    """torch steps whatever has a ``.grad``."""
    pair = SideBySide(server, PRESET, adam, [param.requires_grad_(False) for param in values()])
    pair.check()


# --- models ----------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(torch.tanh(self.first(x)))
        return out


@pytest.mark.parametrize("set_to_none", [True, False])
def test_tied_parameters(server: Server, set_to_none: bool) -> None:
    models = [Tied(), Tied()]
    optimizers = [adam(models[0].parameters()), remote(server, models[1].named_parameters())]
    for step in range(STEPS):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=set_to_none)
            model(torch.full((2, 4), 0.1 * step)).square().sum().backward()
            optimizer.step()
    assert_close(list(models[1].parameters()), list(models[0].parameters()))
    assert models[1].first.weight is models[1].second.weight


def test_gradients_accumulate_as_torch_s_do(server: Server) -> None:
    """Never zeroed at all."""
    models = [Tied(), Tied()]
    optimizers = [adam(models[0].parameters()), remote(server, models[1].parameters())]
    for step in range(STEPS):
        for model, optimizer in zip(models, optimizers, strict=True):
            for half in range(2):
                model(torch.full((2, 4), 0.1 * step + half)).square().sum().backward()
            optimizer.step()
    assert_close(list(models[1].parameters()), list(models[0].parameters()))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(server: Server, set_to_none: bool) -> None:
    """Zeros are gradients: moments decay and t rises; None is none."""
    pair = SideBySide(server, PRESET, adam)
    pair.train(0, 3)
    for optimizer in pair.optimizers:
        optimizer.zero_grad(set_to_none=set_to_none)
        optimizer.step()
    pair.assert_close()
    assert pair.remote.run.describe().step == (3 if set_to_none else 4)


def test_a_closure_gives_the_loss(server: Server) -> None:
    """It runs with gradients on, even inside ``no_grad``."""
    models = [Tied(), Tied()]
    optimizers: list[torch.optim.Optimizer] = [adam(models[0].parameters()), remote(server, models[1].parameters())]
    for step in range(STEPS):
        losses = []
        for model, optimizer in zip(models, optimizers, strict=True):

            def closure(model: Tied = model, optimizer: torch.optim.Optimizer = optimizer, step: int = step) -> Any:
                optimizer.zero_grad()
                loss: torch.Tensor = model(torch.full((2, 4), 0.1 * step)).square().sum()
                loss.backward()
                return loss

            with torch.no_grad():
                loss: Any = optimizer.step(closure)
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert_close(list(models[1].parameters()), list(models[0].parameters()))


def test_a_closure_that_fails_changes_nothing(server: Server) -> None:
    pair = SideBySide(server, PRESET, adam)
    pair.train(0, 3)

    def closure() -> float:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pair.remote.step(closure)
    pair.train(3)
    pair.assert_close()
