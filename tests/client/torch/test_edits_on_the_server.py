"""Local edits as they stand on the server: what was edited and no more; the rest keeps all its digits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from gradwire.client import Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import (
    LR,
    SideBySide,
    Tensors,
    assert_equal,
    gradients,
    new_name,
    values,
)

PRESET = TorchAdam(lr=LR)


def adam(params: Any) -> torch.optim.Adam:
    return torch.optim.Adam(params, lr=LR)


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
    stream = pair.remote.run._attachment.stream
    for param in pair.there:
        param.requires_grad_(False).requires_grad_(True)
        param.detach().clone().clamp_(-0.1, 0.1)
    pair.remote.state_dict()
    pair.train(3)
    assert pair.remote.run._attachment.stream is stream is not None
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


def test_a_step_that_is_interrupted_before_its_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the server's answer and the parameters: the next step brings both, and edits stay edits."""
    for edited in (False, True):
        pair = SideBySide(server, PRESET, adam)
        pair.train(0, 3)
        run = pair.remote.run
        step = run.step

        def interrupted(*args: Any, step: Any = step, **keywords: Any) -> Any:
            step(*args, **keywords)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(run, "step", interrupted)
            before = [param.detach().clone() for param in pair.there]
            with pytest.raises(KeyboardInterrupt):
                pair.step(gradients(3, pair.here))
        assert_equal(pair.there, before)
        if edited:
            for params in (pair.here, pair.there):
                params[0].data.fill_(0.25)
        one: list[torch.Tensor | None] = [*[None] * 4, gradients(4, pair.here)[4]]
        pair.step(one)  # of a single tensor; the others take what the interrupted one gave them
        pair.assert_close()
        pair.train(5)
        pair.assert_close()
        assert run.describe().step == 20
        pair.remote.close()
