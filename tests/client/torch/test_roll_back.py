"""``optimizer.run`` is put back, or given another state: nothing that was read or edited here before lives on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gradwire.client import Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import LR, assert_close, assert_equal, new_name

Training = tuple[torch.nn.Parameter, RemoteOptimizer]


@pytest.fixture(params=[False, True], ids=["plain", "overlap"])
def training(request: pytest.FixtureRequest, server: Server) -> Iterator[Training]:
    param = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    with RemoteOptimizer([param], TorchAdam(lr=LR), target=server, run=new_name(), overlap=request.param) as optimizer:
        yield param, optimizer


def step(param: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (param * 3).sum().backward()
    optimizer.step()


def clamp(param: torch.nn.Parameter) -> None:
    with torch.no_grad():
        param.clamp_(-0.5, 0.5)


@pytest.mark.parametrize("edited", [False, True])
def test_a_run_that_is_put_back_takes_its_parameters_and_state_along(training: Training, edited: bool) -> None:
    param, optimizer = training
    twin = torch.nn.Parameter(param.detach().clone())
    local = torch.optim.Adam([twin], lr=LR)
    for _ in range(2):
        step(param, optimizer)
        step(twin, local)
    snapshot, kept = optimizer.run.save_snapshot(), param.detach().clone()
    for _ in range(3):
        optimizer.param_groups[0]["lr"] *= 0.5
        step(param, optimizer)
        if edited:
            clamp(param)
    assert optimizer.state[param]["step"] == 5
    if edited:
        optimizer.state[param]["exp_avg"].zero_()
    optimizer.run.roll_back(snapshot)
    assert_equal([param.detach()], [kept])
    assert optimizer.param_groups[0]["lr"] == LR
    assert optimizer.state[param]["step"] == 2
    saved = optimizer.state_dict()["state"][0]
    assert_close([saved["exp_avg"]], [local.state[twin]["exp_avg"]])
    step(param, optimizer)
    step(twin, local)
    assert_close([param], [twin])


def test_a_state_that_is_loaded_into_the_run_is_seen(training: Training) -> None:
    param, optimizer = training
    step(param, optimizer)
    state = optimizer.run.state_dict()
    step(param, optimizer)
    assert optimizer.state[param]["step"] == 2
    clamp(param)
    kept = param.detach().clone()
    optimizer.run.load_state_dict(state)
    assert optimizer.state[param]["step"] == 1
    assert_equal([param.detach()], [kept])
    assert optimizer.state_dict()["state"][0]["step"] == 1
