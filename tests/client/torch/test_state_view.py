"""``optimizer.state`` is torch's: what is read is the server's, what is done to it counts before the next step."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from gradwire.client import Server, TorchAdam
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import LR, SideBySide, Tensors, assert_close, gradients, new_name

Edit = Callable[[Optimizer, Tensors], None]


@pytest.fixture(params=[False, True], ids=["plain", "overlap"])
def pair(request: pytest.FixtureRequest, server: Server) -> SideBySide:
    def local(groups: object) -> Optimizer:
        return torch.optim.Adam(groups, lr=LR, amsgrad=True)  # type: ignore[arg-type]

    return SideBySide(server, TorchAdam(lr=LR, amsgrad=True), local, overlap=request.param)


def assert_same_state(pair: SideBySide) -> None:
    ours, theirs = pair.remote.state, pair.local.state
    stepped = [(there, here) for there, here in zip(pair.there, pair.here, strict=True) if here in theirs]
    assert stepped
    assert len(ours) == len(theirs)
    for there, here in stepped:
        assert set(ours[there]) == set(theirs[here])
        for key, value in theirs[here].items():
            assert_close([ours[there][key]], [value])


def assign_empty(optimizer: Optimizer, params: Tensors) -> None:
    optimizer.state = defaultdict(dict)


def clear(optimizer: Optimizer, params: Tensors) -> None:
    optimizer.state.clear()


def clear_one(optimizer: Optimizer, params: Tensors) -> None:
    optimizer.state[params[0]].clear()


def delete_one(optimizer: Optimizer, params: Tensors) -> None:
    del optimizer.state[params[0]]


def zeros_in_place(optimizer: Optimizer, params: Tensors) -> None:
    for entry in optimizer.state.values():
        for value in entry.values():
            value.zero_()


def zeros_assigned(optimizer: Optimizer, params: Tensors) -> None:
    for entry in optimizer.state.values():
        for key, value in list(entry.items()):
            entry[key] = torch.zeros_like(value)


def halve_one(optimizer: Optimizer, params: Tensors) -> None:
    optimizer.state[params[0]]["exp_avg"].mul_(0.5)


def update_one(optimizer: Optimizer, params: Tensors) -> None:
    entry = optimizer.state[params[0]]
    entry.update(exp_avg_sq=entry["exp_avg_sq"] * 4)


def merge_into_one(optimizer: Optimizer, params: Tensors) -> None:
    optimizer.state[params[0]] |= {"exp_avg": torch.ones_like(params[0])}


def merge_into_all(optimizer: Optimizer, params: Tensors) -> None:
    kept = optimizer.state | {}
    optimizer.state |= {params[0]: {**kept[params[0]], "exp_avg": torch.ones_like(params[0])}}


def pop_the_last(optimizer: Optimizer, params: Tensors) -> None:
    assert optimizer.state.popitem()[0] is params[-1]


EDITS = [
    assign_empty,
    clear,
    clear_one,
    delete_one,
    zeros_in_place,
    zeros_assigned,
    halve_one,
    update_one,
    merge_into_one,
    merge_into_all,
    pop_the_last,
]


@pytest.mark.parametrize("edit", EDITS)
def test_edits_count_before_the_next_step(pair: SideBySide, edit: Edit) -> None:
    pair.train(0, 4)
    for optimizer, params in ((pair.local, pair.here), (pair.remote, pair.there)):
        edit(optimizer, params)
    pair.train(4, 8)
    pair.assert_close()
    assert_same_state(pair)
    pair.remote.close()


def test_reading_shows_what_the_server_has_and_changes_nothing(pair: SideBySide) -> None:
    assert len(pair.remote.state) == 0
    for first in range(3):
        pair.train(first, first + 1)
        before = pair.remote.run.digest()
        assert_same_state(pair)
        assert pair.remote.run.digest() == before
        assert pair.remote.run.step_count == first + 1
    pair.remote.close()


def test_what_wrappers_keep_is_saved_and_loaded(pair: SideBySide) -> None:
    """Lookahead keeps slow weights beside Adam's."""
    pair.train(0, 2)
    slow = pair.there[0].detach().clone()
    pair.remote.state[pair.there[0]]["slow"] = slow
    pair.remote.state["wrapper"] = {"calls": 3}
    pair.train(2, 4)
    assert torch.equal(pair.remote.state[pair.there[0]]["slow"], slow)
    saved = pair.remote.state_dict()
    assert torch.equal(saved["state"][0]["slow"], slow)
    assert saved["state"]["wrapper"] == {"calls": 3}
    pair.remote.state[pair.there[0]]["slow"] = slow + 1
    pair.train(4, 5)
    pair.remote.load_state_dict(saved)
    assert torch.equal(pair.remote.state[pair.there[0]]["slow"], slow)
    assert pair.remote.state["wrapper"] == {"calls": 3}
    pair.remote.close()


@pytest.mark.parametrize("overlap", [False, True])
def test_distributed_checkpoints_take_no_step(server: Server, overlap: bool) -> None:
    """Theirs take a step of zero gradients where they find no state."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    remote = RemoteOptimizer(model.parameters(), TorchAdam(lr=LR), target=server, run=new_name(), overlap=overlap)
    local = torch.optim.Adam(twin.parameters(), lr=LR)
    for steps in range(4):
        before = remote.run.digest()
        saved: Any = get_optimizer_state_dict(model, remote)
        assert remote.run.digest() == before
        assert remote.run.step_count == steps
        assert int(saved["state"]["weight"]["step"]) == steps
        if steps:
            for key, value in local.state[twin.weight].items():
                assert_close([saved["state"]["weight"][key]], [value])
        assert_close(list(model.parameters()), list(twin.parameters()))
        for one, optimizer in ((model, remote), (twin, local)):
            optimizer.zero_grad()
            one(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    remote.close()


def test_a_tensor_that_is_old_is_refused_when_it_is_changed_in_part(pair: SideBySide) -> None:
    pair.train(0, 2)
    held = pair.remote.state[pair.there[0]]["exp_avg"]
    pair.train(2, 3)
    held[0] += 1
    for param, grad in zip(pair.there, gradients(3, pair.there), strict=True):
        param.grad = grad
    with pytest.raises(ValueError, match="read before the last step"):
        pair.remote.step()
    assert pair.remote.run.step_count == 3
    pair.remote.step()
    pair.remote.close()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("exp_avg", torch.zeros(7), "exp_avg"),
        ("exp_avg_sq", "much", "exp_avg_sq"),
        ("step", torch.tensor(-1.0), "step"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_sent(
    pair: SideBySide, key: str, value: object, words: str
) -> None:
    pair.train(0, 2)
    before = pair.remote.run.digest()
    kept = pair.remote.state[pair.there[0]][key]
    pair.remote.state[pair.there[0]][key] = value
    for param, grad in zip(pair.there, gradients(2, pair.there), strict=True):
        param.grad = grad
    with pytest.raises((ValueError, TypeError), match=words):
        pair.remote.step()
    pair.remote.state[pair.there[0]][key] = kept
    assert pair.remote.run.digest() == before
    pair.remote.step()
    pair.remote.close()
