"""``state_dict`` has torch's format, key for key; ``load_state_dict`` takes it whole or refuses and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch

from gradwire.client import AMSGrad, Server, TorchAdam, TorchAdamW
from gradwire.client.torch import RemoteOptimizer, load_state_dict
from tests.client.torch.side_by_side import LR, PRESETS, SideBySide, Tensors, assert_close, new_name, values

PRESET = TorchAdam(lr=LR)


def adam(params: Any, **keywords: Any) -> torch.optim.Adam:
    return torch.optim.Adam(params, lr=LR, **keywords)


def groups(params: Tensors) -> list[dict[str, Any]]:
    return [{"params": params[:2], "lr": 0.03}, {"params": params[2:], "name": "rest"}]


@pytest.fixture
def pair(server: Server) -> Iterator[SideBySide]:
    pair = SideBySide(server, PRESET, adam, groups=groups)
    pair.train(0, 5)
    yield pair
    pair.remote.close()


# --- the format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("keywords", [{}, {"amsgrad": True}, {"lr": torch.tensor(LR)}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("kind", PRESETS)
def test_the_format_is_torch_s(server: Server, kind: str, keywords: dict[str, Any], dtype: torch.dtype) -> None:
    """Keys and their order, types, dtypes, shapes, devices; and, to rounding, the values."""
    ours, theirs = PRESETS[kind]
    pair = SideBySide(server, ours(**keywords), lambda p: theirs(p, **keywords), values(0, dtype), groups=groups)
    assert pair.remote.defaults == pair.local.defaults
    pair.train(0, 3)
    found, expected = pair.remote.state_dict(), pair.local.state_dict()
    assert list(found) == list(expected)
    assert found["param_groups"] == expected["param_groups"]
    assert [list(group) for group in found["param_groups"]] == [list(group) for group in expected["param_groups"]]
    assert list(found["state"]) == list(expected["state"])
    for index, entry in expected["state"].items():
        assert list(found["state"][index]) == list(entry)
        for key, value in entry.items():
            assert found["state"][index][key].device == value.device
            assert found["state"][index][key].shape == value.shape
        assert_close(list(found["state"][index].values()), list(entry.values()), 3)
    pair.remote.close()


def test_names_are_saved_and_do_not_matter(server: Server) -> None:
    pair = SideBySide(server, PRESET, adam, groups=lambda p: [(f"old.{i}", param) for i, param in enumerate(p)])
    pair.train(0, 3)
    state = pair.remote.state_dict()
    assert state["param_groups"][0]["param_names"] == [f"old.{index}" for index in range(5)]
    other = SideBySide(
        server, PRESET, adam, groups=lambda p: [(f"new.{index}", param) for index, param in enumerate(p)]
    )
    for optimizer in other.optimizers:
        optimizer.load_state_dict(state)
        assert optimizer.param_groups[0]["param_names"] == state["param_groups"][0]["param_names"], "as in torch"
    other.train(0, 3)
    other.assert_close()
    unnamed = SideBySide(server, PRESET, adam)
    del state["param_groups"][0]["param_names"]
    for optimizer in (*other.optimizers, *unnamed.optimizers):
        optimizer.load_state_dict(state)
    assert "param_names" in other.remote.param_groups[0]
    assert "param_names" not in unnamed.remote.param_groups[0]
    for one in (pair, other, unnamed):
        one.remote.close()


def test_a_state_is_a_copy(pair: SideBySide) -> None:
    """Nothing that is done to it, or to a copy of it, reaches the run, and the other way round."""
    state = pair.remote.state_dict()
    kept, before = deepcopy(state), state["state"][0]["exp_avg"].clone()
    state["state"][0]["exp_avg"].fill_(7.0)
    state["param_groups"][0]["lr"] = 7.0
    assert torch.equal(pair.remote.state_dict()["state"][0]["exp_avg"], before)
    assert pair.remote.param_groups[0]["lr"] == 0.03
    pair.remote.load_state_dict(kept)
    kept["param_groups"][0]["lr"] = 7.0
    kept["state"][0]["exp_avg"].fill_(7.0)
    pair.train(5)
    pair.assert_close()


def test_nothing_is_kept_on_this_side(pair: SideBySide) -> None:
    """What is read to be saved; what `state` is asked for stays until the next step."""
    pair.remote.state_dict()
    assert not any(entry.raw() for entry in dict.values(pair.remote.state))


# --- hooks -----------------------------------------------------------------------------------------------------------


def test_hooks(pair: SideBySide) -> None:
    """Before and after, of saving and of loading, in torch's order; what they return takes the state's place."""
    seen: dict[int, list[str]] = {0: [], 1: []}
    for number, optimizer in enumerate(pair.optimizers):
        calls = seen[number]

        def before_saving(_: Any, calls: list[str] = calls) -> None:
            calls.append("before saving")

        def after_saving(_: Any, state: dict[str, Any], calls: list[str] = calls) -> dict[str, Any]:
            calls.append(f"after saving {len(state['state'])}")
            return {**state, "epoch": 3}

        def before_loading(_: Any, state: dict[str, Any], calls: list[str] = calls) -> dict[str, Any]:
            calls.append(f"before loading, epoch {state.pop('epoch')}")
            changed = deepcopy(state)
            changed["param_groups"][0]["lr"] = 0.05
            return changed

        def after_loading(optimizer: Any, calls: list[str] = calls) -> None:
            calls.append(f"after loading, lr {optimizer.param_groups[0]['lr']}")

        optimizer.register_state_dict_pre_hook(before_saving)
        optimizer.register_state_dict_post_hook(after_saving)
        optimizer.register_load_state_dict_pre_hook(before_loading)
        optimizer.register_load_state_dict_post_hook(after_loading)
        state = optimizer.state_dict()
        assert state["epoch"] == 3
        optimizer.load_state_dict(state)
        assert state["epoch"] == 3, "hooks get a shallow copy"
    assert (
        seen[0] == seen[1] == ["before saving", "after saving 5", "before loading, epoch 3", "after loading, lr 0.05"]
    )
    pair.train(5)
    pair.assert_close()


# --- what does not fit -----------------------------------------------------------------------------------------------


def without(key: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        del state["state"][4][key]

    return change


def group_says(**keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state["param_groups"][1].update(keys)

    return change


def entry_says(**keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state["state"][4].update(keys)

    return change


def another_optimizer(state: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD(groups(values()), lr=0.1, momentum=0.9)
    state.update(optimizer.state_dict())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (group_says(amsgrad=True), "group 1 has amsgrad=True in the state; this optimizer has amsgrad=False"),
        (group_says(maximize=True), "group 1 has maximize=True in the state"),
        (group_says(decoupled_weight_decay=True), "group 1 has decoupled_weight_decay=True in the state"),
        (group_says(optimized_update=True), "group 1 has optimized_update=True in the state"),
        (group_says(capturable=True), "capturable=True is not supported"),
        (group_says(lr="fast"), "lr is 'fast'; expected a number"),
        (lambda state: state["param_groups"].pop(), r"groups of \[2\] parameters; this optimizer has \[2, 3\]"),
        (lambda state: state["param_groups"][1]["params"].pop(), r"\[2, 2\] parameters; this optimizer has \[2, 3\]"),
        (lambda state: state["param_groups"][0].pop("betas"), "not one of Adam's: a parameter group has no betas"),
        (another_optimizer, "not one of Adam's: a parameter group has no"),
        (without("exp_avg_sq"), r"expected \['exp_avg', 'exp_avg_sq', 'step'\]"),
        (without("step"), r"expected \['exp_avg', 'exp_avg_sq', 'step'\]"),
        (entry_says(max_exp_avg_sq=torch.zeros(5)), "max_exp_avg_sq"),
        (entry_says(exp_avg=torch.zeros(4)), r"exp_avg of tensor .* has shape \(4,\)"),
        (entry_says(exp_avg=[0.0] * 5), "exp_avg of tensor .* is a list; expected a tensor"),
        (entry_says(exp_avg=torch.zeros(5, dtype=torch.complex64)), "exp_avg of tensor .* is torch.complex64"),
        (entry_says(step=torch.tensor(-1.0)), "step of tensor .* is -1.0; expected a whole number >= 0"),
        (entry_says(step=torch.tensor(float("nan"))), "step of tensor .* is nan; expected a whole number >= 0"),
        (entry_says(step=torch.tensor(1.5)), "step of tensor .* is 1.5; expected a whole number >= 0"),
        (entry_says(step="one"), "step of tensor .* is 'one'; expected a whole number >= 0"),
        (lambda state: state["state"].update({9: {}}), r"names parameters \[9\] that no parameter group has"),
        (lambda state: state.pop("state"), "the state has no 'state'"),
        (lambda state: state.pop("param_groups"), "the state has no 'param_groups'"),
    ],
)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_state_that_does_not_fit_changes_nothing(
    server: Server, spoil: Callable[[dict[str, Any]], None], words: str, overlap: bool
) -> None:
    pair = SideBySide(server, PRESET, adam, groups=groups, overlap=overlap)
    pair.train(0, 2)
    state = deepcopy(pair.remote.state_dict())
    state["param_groups"][0]["lr"] = 7.0
    spoil(state)
    kept = [dict(group) for group in pair.remote.param_groups]
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=words):
        pair.remote.load_state_dict(state)
    assert [{**group, "params": 0} for group in pair.remote.param_groups] == [{**group, "params": 0} for group in kept]
    pair.train(2, 6)
    pair.assert_close()
    pair.remote.close()


def test_what_is_no_state_at_all(pair: SideBySide) -> None:
    with pytest.raises(TypeError, match="the state is a list; expected what state_dict"):
        pair.remote.load_state_dict([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the state is a list; expected what state_dict"):
        load_state_dict(pair.remote.run, [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the state has no 'param_groups'"):
        load_state_dict(pair.remote.run, {"state": {}})
    pair.train(5)
    pair.assert_close()


@pytest.mark.parametrize(
    "other", [TorchAdam(amsgrad=True), TorchAdam(maximize=True), TorchAdamW(), AMSGrad()], ids=repr
)
def test_the_state_of_another_variant(server: Server, pair: SideBySide, other: Any) -> None:
    """Also where neither has been stepped: the state would mean another training."""
    optimizer = RemoteOptimizer(groups(values(3)), other, target=server, run=new_name())
    with pytest.raises(ValueError, match=r"group 0 has .* in the state; this optimizer has"):
        pair.remote.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"group 0 has .* in the state; this optimizer has"):
        optimizer.load_state_dict(pair.remote.state_dict())
    pair.train(5)
    pair.assert_close()
    assert optimizer.run.describe().step == 0
    optimizer.close()
