"""Parameters that are changed outside the optimizer: as locally, in whatever way and at whatever moment it is done."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gradwire.client import Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import LR, assert_close, new_name

STEPS = 10

PRESET = TorchAdam(lr=LR, eps=1e-6)


def adam(params: Any) -> torch.optim.Adam:
    return torch.optim.Adam(params, lr=LR, eps=1e-6)


class Model(nn.Module):
    """A matrix in transposed memory, a vector, a scalar, and one that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.layer = nn.Linear(5, 7)
        self.layer.weight = nn.Parameter(torch.randn(5, 7).t())
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.tanh(self.layer(x)) * self.scale
        return out


Edit = Callable[[Model, int], None]


def clamp(model: Model, step: int) -> None:
    with torch.no_grad():
        for param in model.parameters():
            param.clamp_(-0.4, 0.4)


def clamp_data(model: Model, step: int) -> None:
    for param in model.parameters():
        param.data.clamp_(-0.4, 0.4)


def one_element(model: Model, step: int) -> None:
    with torch.no_grad():
        model.layer.weight[step % 7, step % 5] = 0.125 * step
        model.scale.add_(1e-3)


def one_element_of_data(model: Model, step: int) -> None:
    model.layer.weight.data[step % 7, step % 5] = 0.125 * step
    model.scale.data.add_(1e-3)


def through_numpy(model: Model, step: int) -> None:
    """The same memory, of which torch knows nothing."""
    model.layer.bias.detach().numpy()[step % 7] *= -0.5


def storage_replaced(model: Model, step: int) -> None:
    """Other strides, too."""
    model.layer.weight.data = (model.layer.weight.data * 0.9).contiguous()
    model.scale.data = torch.tensor(0.5 + 0.01 * step)


def storage_replaced_by_a_view(model: Model, step: int) -> None:
    model.layer.bias.data = torch.full((7, 2), 0.1 * step)[:, 0]


def load_state_dict(model: Model, step: int) -> None:
    model.load_state_dict({name: value * 0.95 for name, value in model.state_dict().items()})


def assigned_from_a_vector(model: Model, step: int) -> None:
    """They become views of one vector."""
    params = [model.layer.bias, model.scale, model.unused]
    vector_to_parameters(0.95 * parameters_to_vector(params), params)


def initialized_anew(model: Model, step: int) -> None:
    if step % 6 == 0:
        torch.manual_seed(step)
        nn.init.normal_(model.layer.weight, std=0.2)
        nn.init.zeros_(model.layer.bias)


def one_without_a_gradient(model: Model, step: int) -> None:
    with torch.no_grad():
        model.unused.add_(step)


def rolled(model: Model, step: int) -> None:
    """The same values, elsewhere."""
    model.layer.weight.data.copy_(model.layer.weight.data.roll(1, 0))


def negated(model: Model, step: int) -> None:
    model.layer.weight.data.neg_()


EDITS = [
    clamp,
    clamp_data,
    one_element,
    one_element_of_data,
    through_numpy,
    storage_replaced,
    storage_replaced_by_a_view,
    load_state_dict,
    assigned_from_a_vector,
    initialized_anew,
    one_without_a_gradient,
    rolled,
    negated,
]


@pytest.fixture(params=[False, True], ids=["plain", "overlap"])
def models(server: Server, request: pytest.FixtureRequest) -> Iterator[list[tuple[Model, Optimizer]]]:
    """The model that is trained locally, and the one that is trained remotely."""
    local, remote = Model(), Model()
    there = RemoteOptimizer(remote.parameters(), PRESET, target=server, run=new_name(), overlap=request.param)
    yield [(local, adam(local.parameters())), (remote, there)]
    there.close()


def backward(model: Model, optimizer: Optimizer, step: int) -> None:
    optimizer.zero_grad()
    model(torch.full((2, 5), 0.1 * step)).sub(0.3).square().sum().backward()


def check(models: list[tuple[Model, Optimizer]]) -> None:
    """Gradients follow parameters here, which doubles and redoubles a difference a few times."""
    (local, _), (remote, _) = models
    assert_close(list(remote.parameters()), list(local.parameters()), 8 * STEPS)
    optimizer = models[1][1]
    assert isinstance(optimizer, RemoteOptimizer)
    assert optimizer.run.describe().step == STEPS


@pytest.mark.parametrize("when", ["between steps", "before the step"])
@pytest.mark.parametrize("edit", EDITS)
def test_edits(models: list[tuple[Model, Optimizer]], edit: Edit, when: str) -> None:
    """From the first step on; on either side of the backward pass."""
    for model, optimizer in models:
        for step in range(STEPS):
            if when == "between steps":
                edit(model, step)
            backward(model, optimizer, step)
            if when == "before the step":
                edit(model, step)
            optimizer.step()
    check(models)


def test_averaged_weights_swapped_in_and_out(models: list[tuple[Model, Optimizer]]) -> None:
    """As for an evaluation after each second step; the copy of the model knows nothing of the optimizer."""
    for model, optimizer in models:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        for step in range(STEPS):
            backward(model, optimizer, step)
            optimizer.step()
            average.update_parameters(model)
            if step % 2:
                kept = copy.deepcopy(model.state_dict())
                model.load_state_dict(average.module.state_dict())
                with torch.no_grad():
                    model(torch.ones(2, 5))
                model.load_state_dict(kept)
    check(models)


def test_averaged_weights_that_stay(models: list[tuple[Model, Optimizer]]) -> None:
    """Training goes on from the average."""
    for model, optimizer in models:
        average = AveragedModel(model)
        for step in range(STEPS):
            backward(model, optimizer, step)
            optimizer.step()
            average.update_parameters(model)
            if step == 5:
                model.load_state_dict(average.module.state_dict())
    check(models)
