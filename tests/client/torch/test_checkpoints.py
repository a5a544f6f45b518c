"""Checkpoints: begun here and finished there, with the numbers of a training that was never stopped."""

from __future__ import annotations

import io
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from gradwire.client import Server
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import (
    LR,
    PRESETS,
    SHAPES,
    STEPS,
    Tensors,
    assert_close,
    copies,
    gradients,
    new_name,
    set_gradients,
    values,
)

HALF = STEPS // 2


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


WAYS: dict[str, Callable[[Any], Any]] = {"file": through_a_file, "dict": deepcopy, "same-dict": lambda state: state}
each_way = pytest.mark.parametrize("way", WAYS)


def groups(params: Tensors) -> list[dict[str, Any]]:
    return [{"params": params[:2], "lr": 0.03, "weight_decay": 0.1}, {"params": params[2:], "betas": (0.8, 0.95)}]


class Maker:
    """Makes local and remote optimizers of one configuration."""

    def __init__(self, server: Server, kind: str, **keywords: Any) -> None:
        self._server = server
        self._preset, self._local = PRESETS[kind]
        self._keywords = {"lr": LR, **keywords}

    def local(self, params: Tensors) -> Optimizer:
        return self._local(groups(params), **self._keywords)

    def remote(self, params: Tensors) -> RemoteOptimizer:
        return RemoteOptimizer(groups(params), self._preset(**self._keywords), target=self._server, run=new_name())


def train(optimizer: Optimizer, params: Tensors, first: int, last: int) -> None:
    for step in range(first, last):
        set_gradients(params, gradients(step, params))
        if step == 3:
            optimizer.param_groups[0]["lr"] = 0.02
        optimizer.step()


def done(optimizer: Optimizer) -> None:
    if isinstance(optimizer, RemoteOptimizer):
        optimizer.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("keywords", [{}, {"amsgrad": True}, {"maximize": True}, {"amsgrad": True, "maximize": True}])
@pytest.mark.parametrize("kind", PRESETS)
def test_finished_where_it_was_not_begun(
    server: Server, kind: str, keywords: dict[str, bool], dtype: torch.dtype
) -> None:
    """Locally to remotely, remotely to locally and remotely to remotely, into optimizers of other hyperparameters."""
    maker = Maker(server, kind, **keywords)
    whole = values(0, dtype)
    train(maker.local(whole), whole, 0, STEPS)
    for begin, finish in (
        (maker.local, maker.remote),
        (maker.remote, maker.local),
        (maker.remote, maker.remote),
    ):
        params = values(0, dtype)
        first = begin(params)
        train(first, params, 0, HALF)
        state = through_a_file({"model": dict(enumerate(params)), "optimizer": first.state_dict()})
        done(first)
        fresh = values(99, dtype)  # of other values; the optimizer exists when they are loaded, as in training scripts
        second = finish(fresh)
        second.param_groups[1].update(lr=7.0, eps=1.0)
        with torch.no_grad():
            for index, param in enumerate(fresh):
                param.copy_(state["model"][index])
        second.load_state_dict(state["optimizer"])
        assert second.param_groups[0]["lr"] == 0.02
        assert second.param_groups[1]["lr"] == LR
        train(second, fresh, HALF, STEPS)
        done(second)
        assert_close(fresh, whole)


@each_way
def test_ways_of_handing_it_over(server: Server, way: str) -> None:
    """What was handed over is left alone by the optimizer that took it, and by the one that made it."""
    maker = Maker(server, "adam", amsgrad=True)
    params = values()
    first = maker.remote(params)
    train(first, params, 0, HALF)
    state = first.state_dict()
    kept = deepcopy(state)
    others = [copies(params), copies(params)]
    optimizers: list[Optimizer] = [maker.local(others[0]), maker.remote(others[1])]
    for optimizer, other in zip(optimizers, others, strict=True):
        optimizer.load_state_dict(WAYS[way](state))
        if way != "same-dict" or optimizer is optimizers[1]:  # torch takes the tensors as they are, and steps them
            train(optimizer, other, HALF, STEPS)
    train(first, params, HALF, STEPS)
    if way != "same-dict":
        assert_close(others[0], params)
    assert_close(others[1], params)
    assert_same(state, kept)
    first.close()
    done(optimizers[1])


def assert_same(found: Any, expected: Any) -> None:
    """Keys in order, types and values, tensors bit for bit."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert list(found) == list(expected)
        for key in found:
            assert_same(found[key], expected[key])
    elif isinstance(found, (list, tuple)):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same(ours, theirs)
    elif isinstance(found, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_state_comes_back_bit_for_bit(server: Server, dtype: torch.dtype) -> None:
    """Loaded and read again, into the run that it is of and into another; also the one of no step."""
    maker = Maker(server, "adamw", amsgrad=True)
    params = values(0, dtype)
    optimizer, other = maker.remote(params), maker.remote(copies(params))
    nothing = optimizer.state_dict()
    assert nothing["state"] == {}
    train(optimizer, params, 0, 7)
    state = deepcopy(optimizer.state_dict())
    for one in (optimizer, other):
        one.load_state_dict(state)
        assert_same(one.state_dict(), state)
    optimizer.load_state_dict(nothing)
    assert_same(optimizer.state_dict(), nothing)
    assert optimizer.run.describe().step == 0
    optimizer.close()
    other.close()


def test_tensors_that_were_never_stepped_have_no_state(server: Server) -> None:
    maker = Maker(server, "adam")
    params = values()
    optimizer = maker.remote(params)
    set_gradients(params, [torch.ones_like(p) if index in (1, 4) else None for index, p in enumerate(params)])
    optimizer.step()
    state = optimizer.state_dict()
    assert list(state["state"]) == [1, 4]
    local = maker.local(copies(params))
    local.load_state_dict(state)
    optimizer.load_state_dict(local.state_dict())
    assert list(optimizer.state_dict()["state"]) == [1, 4]
    optimizer.close()


# --- 16 bits: the state is float32 remotely, and has the parameter's type in torch ----------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_parameters(server: Server, dtype: torch.dtype) -> None:
    """The state is that of float32 parameters, with more digits than torch's own has; both load into each other."""
    maker = Maker(server, "adam", amsgrad=True)
    params = values(0, dtype)
    masters = [param.detach().float().requires_grad_() for param in params]
    optimizer, reference = maker.remote(params), maker.local(masters)
    for step in range(HALF):
        grads = gradients(step, params)
        set_gradients(params, grads)
        set_gradients(masters, [None if grad is None else grad.float() for grad in grads])
        for each in (optimizer, reference):
            each.step()
    state, expected = optimizer.state_dict(), reference.state_dict()
    assert state["state"].keys() == expected["state"].keys() == set(range(len(SHAPES)))
    for index, entry in state["state"].items():
        assert {value.dtype for value in entry.values()} == {torch.float32}
        assert_close(list(entry.values()), list(expected["state"][index].values()), HALF)
    local = maker.local(copies(params))
    local.load_state_dict(state)
    half = local.state_dict()
    assert half["state"][0]["exp_avg"].dtype is dtype
    other = maker.remote(copies(params))
    other.load_state_dict(half)
    for index, entry in other.state_dict()["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, half["state"][index][key].float()), "the digits that torch had left"
    optimizer.close()
    other.close()


def test_16_bit_parameters_go_on_from_a_checkpoint(server: Server) -> None:
    """As float32 ones would from the same values: what a checkpoint does not have is the masters' further digits."""
    maker = Maker(server, "adamw")
    params = values(0, torch.bfloat16)
    first = maker.remote(params)
    train(first, params, 0, HALF)
    state = through_a_file(first.state_dict())
    first.close()
    fresh = copies(params)
    masters = [param.detach().float().requires_grad_() for param in params]
    second, reference = maker.remote(fresh), maker.local(masters)
    for each in (second, reference):
        each.load_state_dict(state)
    for step in range(HALF, STEPS):
        grads = gradients(step, fresh)
        set_gradients(fresh, grads)
        set_gradients(masters, [None if grad is None else grad.float() for grad in grads])
        for each in (second, reference):
            each.step()
    read = [torch.from_numpy(value) for value in second.run.read().values()]
    assert_close(read, masters)
    assert all(torch.equal(param, value.bfloat16()) for param, value in zip(fresh, read, strict=True))
    second.close()
