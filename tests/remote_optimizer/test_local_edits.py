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
from tests.remote_optimizer.side_by_side import (
    LR,
    SideBySide,
    Tensors,
    assert_close,
    assert_equal,
    gradients,
    new_name,
    values,
)

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
    model.scale.data += 1e-3


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
        model.unused += step


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
    local, remote = (list(model.parameters()) for model, _ in models)
    assert_close(remote, local, 8 * STEPS)
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


# --- what stands on the server ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_unedited_elements_keep_all_their_digits(server: Server, dtype: torch.dtype, overlap: bool) -> None:
    """Masters of 16-bit parameters are not rounded by an edit of a neighbour, nor by one that changes nothing."""
    params = values(0, dtype)
    optimizer = RemoteOptimizer(params, PRESET, target=server, run=new_name(), overlap=overlap)
    for step in range(3):
        for param, grad in zip(params, gradients(step, params), strict=True):
            param.grad = grad
        optimizer.step()
    before = {name: torch.from_numpy(value.copy()) for name, value in optimizer.run.read().items()}
    if dtype.itemsize == 2:
        assert any((value.to(dtype).float() != value).any() for value in before.values()), "there are such digits"
    with torch.no_grad():
        params[0][1, 2] = 0.3
        params[1].data.clamp_(-100, 100)
        params[2].copy_(params[2].clone())
        params[4].data = params[4].data.clone()
    params[3].grad = torch.zeros_like(params[3])  # a step of nothing
    for param in (params[0], params[1], params[2], params[4]):
        param.grad = None
    optimizer.step()
    after = {name: torch.from_numpy(value.copy()) for name, value in optimizer.run.read().items()}
    assert after["param_0"][1, 2] == params[0][1, 2].detach()
    before["param_0"][1, 2] = after["param_0"][1, 2]
    assert_equal(list(after.values()), list(before.values()))
    optimizer.close()


def test_weights_swapped_out_and_back_in_leave_the_masters_alone(server: Server) -> None:
    params = values(0, torch.bfloat16)
    optimizer = RemoteOptimizer(params, PRESET, target=server, run=new_name())
    for param, grad in zip(params, gradients(0, params), strict=True):
        param.grad = grad
    optimizer.step()
    before = [torch.from_numpy(value.copy()) for value in optimizer.run.read().values()]
    kept: Tensors = [param.detach().clone() for param in params]
    with torch.no_grad():
        for param in params:
            param.zero_()
        for param, value in zip(params, kept, strict=True):
            param.copy_(value)
    for param in params:
        param.grad = None
    params[3].grad = torch.zeros_like(params[3])
    optimizer.step()
    assert_equal([torch.from_numpy(value) for value in optimizer.run.read().values()], before)
    optimizer.close()


def test_nothing_is_written_that_did_not_change(server: Server) -> None:
    """A write ends the stream: it would cost every step a new attachment."""
    pair = SideBySide(server, PRESET, adam)
    pair.train(0, 3)
    stream = pair.remote.run._stream
    for param in pair.there:
        param.requires_grad_(False).requires_grad_(True)
        param.detach().clone().clamp_(-0.1, 0.1)
    pair.remote.state_dict()
    pair.train(3)
    assert pair.remote.run._stream is stream is not None
    pair.assert_close()
    pair.remote.close()


def test_model_and_optimizer_loaded_in_either_order(server: Server) -> None:
    for optimizer_first in (False, True):
        pair = SideBySide(server, PRESET, adam)
        pair.train(0, 5)
        model, state = [param.detach().clone() for param in pair.there], copy.deepcopy(pair.remote.state_dict())
        pair.train(5, 9)
        for params, optimizer in ((pair.here, pair.local), (pair.there, pair.remote)):
            if optimizer_first:
                optimizer.load_state_dict(state)
            with torch.no_grad():
                for param, value in zip(params, model, strict=True):
                    param.copy_(value)
            if not optimizer_first:
                optimizer.load_state_dict(copy.deepcopy(state))
        pair.train(5)
        pair.assert_close()
        pair.remote.close()
