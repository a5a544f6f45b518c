"""Parameter groups: own hyperparameters, keys nobody knows, empty ones, groups that are added, what cannot change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradwire.client import Adam, AMSGrad, InvalidHyperparameter, Server, TorchAdam, TorchAdamW
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import (
    LR,
    PRESETS,
    STEPS,
    SideBySide,
    Tensors,
    assert_equal,
    gradients,
    new_name,
    values,
)

each_preset = pytest.mark.parametrize("kind", PRESETS)


def adam(params: Any) -> torch.optim.Adam:
    return torch.optim.Adam(params, lr=LR)


PRESET = TorchAdam(lr=LR)


def start(server: Server, params: Any, preset: Adam = PRESET, **options: Any) -> RemoteOptimizer:
    return RemoteOptimizer(params, preset, target=server, run=new_name(), **options)


@each_preset
def test_groups_have_keys_of_their_own(server: Server, kind: str) -> None:
    def groups(p: Tensors) -> list[dict[str, Any]]:
        return [
            {"params": p[:1], "lr": 3e-2, "betas": (0.8, 0.9)},
            {"params": p[1:2], "weight_decay": 0.5, "decoupled_weight_decay": kind == "adam"},
            {"params": p[2:4], "amsgrad": True, "eps": 1e-3},
            {"params": p[4:], "maximize": True, "foreach": False, "fused": None},
        ]

    ours, theirs = PRESETS[kind]
    pair = SideBySide(server, ours(lr=LR), lambda p: theirs(p, lr=LR), groups=groups)
    for here, there in zip(pair.local.param_groups, pair.remote.param_groups, strict=True):
        assert {**here, "params": 0} == {**there, "params": 0}
    pair.check()


def test_unknown_keys_are_kept(server: Server) -> None:
    def groups(p: Tensors) -> list[dict[str, Any]]:
        return [{"params": p[:2], "name": "head", "lr_scale": 0.1}, {"params": p[2:], "name": "body"}]

    pair = SideBySide(server, PRESET, adam, groups=groups)
    pair.check()
    assert [group["name"] for group in pair.remote.param_groups] == ["head", "body"]
    assert "lr_scale" not in pair.remote.param_groups[1]


def test_empty_groups(server: Server) -> None:
    """They are no groups of the run; the numbers of the others stay torch's."""

    def groups(p: Tensors) -> list[dict[str, Any]]:
        return [{"params": []}, {"params": p[:2], "lr": 0.03}, {"params": []}, {"params": p[2:]}, {"params": []}]

    pair = SideBySide(server, PRESET, adam, groups=groups)
    pair.train(0, 10)
    for optimizer in pair.optimizers:
        optimizer.param_groups[0]["lr"] = 7.0
        optimizer.param_groups[3]["lr"] = 0.02
        optimizer.load_state_dict(optimizer.state_dict())
    pair.train(10)
    pair.assert_close()
    assert pair.remote.last_receipt is not None
    assert pair.remote.last_receipt.learning_rates == (0.03, 0.02)
    pair.remote.param_groups[3]["amsgrad"] = True
    with pytest.raises(ValueError, match="group 3 has amsgrad=True"):
        pair.remote.step()


@pytest.mark.parametrize("key", ["lr", "betas", "eps", "weight_decay"])
@each_preset
def test_hyperparameters_may_change_at_every_step(server: Server, kind: str, key: str) -> None:
    """From 0, to 0, of one group, back again; by assignment, as users and schedulers do."""
    sequence: dict[str, list[Any]] = {
        "lr": [0.1, 0.0, 1e-3],
        "betas": [(0.5, 0.6), (0.0, 0.0), (0.9, 0.999)],
        "eps": [0.1, 0.0, 1e-8],
        "weight_decay": [0.3, 0.0, 0.1],
    }
    ours, theirs = PRESETS[kind]
    pair = SideBySide(
        server,
        ours(lr=LR, weight_decay=0.0),
        lambda p: theirs(p, lr=LR, weight_decay=0.0),
        groups=lambda p: [{"params": p[:2]}, {"params": p[2:]}],
    )

    def change(step: int) -> None:
        for optimizer in pair.optimizers:
            optimizer.param_groups[step % 2][key] = sequence[key][step % 3]

    pair.train(each=change)
    pair.assert_close()


@pytest.mark.parametrize("when", [0, 7])
@each_preset
def test_add_param_group(server: Server, kind: str, when: int) -> None:
    """Before the first step and in the middle; the second one has a key of its own, the third one names no key."""
    ours, theirs = PRESETS[kind]
    pair = SideBySide(server, ours(lr=LR), lambda p: theirs(p, lr=LR), groups=lambda p: p[:2])
    for step in range(STEPS):
        grads = gradients(step, pair.here)
        if step in (when, when + 3):
            part = slice(2, 4) if step == when else slice(4, 5)
            keys = {"lr": 0.05, "amsgrad": True} if step == when else {}
            for params, optimizer in ((pair.here, pair.local), (pair.there, pair.remote)):
                optimizer.add_param_group({"params": params[part], **keys})
        pair.step(grads)
    pair.assert_close()
    assert len(pair.remote.param_groups) == 3


def test_add_param_group_keeps_what_is_there_bit_for_bit(server: Server) -> None:
    """Values and state; and the new group has its values, its edits too."""
    pair = SideBySide(server, PRESET, lambda p: adam(p[:4]))
    pair.remote = start(server, pair.there[:4])
    pair.train(0, 5)
    before, values_before = pair.remote.state_dict(), pair.remote.run.read()
    pair.there[0].data.mul_(0.5)
    pair.remote.add_param_group({"params": pair.there[4]})
    after, values_after = pair.remote.state_dict(), pair.remote.run.read()
    assert before["state"].keys() == after["state"].keys() == {0, 1, 2, 3}
    for index, entry in before["state"].items():
        for key, value in entry.items():
            assert torch.equal(value, after["state"][index][key]), (index, key)
    for name, value in list(values_before.items())[1:]:
        assert (value == values_after[name]).all()
    assert_equal([torch.from_numpy(values_after["param_0"])], [pair.there[0].detach()])
    assert pair.remote.run.describe().step == 5


def test_a_run_grows_from_float32_to_float64(server: Server) -> None:
    pair = SideBySide(server, PRESET, lambda p: adam(p[:2]), [*values()[:2], *values(1, torch.float64)[2:4]])
    pair.remote = start(server, pair.there[:2])
    assert pair.remote.run.dtype == "float32"
    for step in range(STEPS):
        if step == 7:
            pair.local.add_param_group({"params": pair.here[2:]})
            pair.remote.add_param_group({"params": pair.there[2:]})
        pair.step(gradients(step, pair.here))
    pair.assert_close()
    assert pair.remote.run.dtype == "float64"


def test_an_optimizer_that_begins_with_names_goes_on_with_names(server: Server) -> None:
    pair = SideBySide(server, PRESET, adam, groups=lambda p: [("w", p[0])])
    with pytest.raises(ValueError, match="with/without names"):
        pair.remote.add_param_group({"params": pair.there[1:]})
    for params, optimizer in ((pair.here, pair.local), (pair.there, pair.remote)):
        optimizer.add_param_group({"params": [(f"w{i}", p) for i, p in enumerate(params[1:])]})
    assert [tensor.name for tensor in pair.remote.run.layout.tensors] == ["w", "w0", "w1", "w2", "w3"]
    pair.check()


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ({"params": [torch.zeros(2, dtype=torch.int32)]}, TypeError, "is torch.int32; expected float32"),
        ({"params": [torch.zeros(2)], "capturable": True}, NotImplementedError, "capturable=True is not supported"),
        ({"params": [torch.zeros(2)], "lr": "fast"}, TypeError, "lr is 'fast'; expected a number"),
        ({"params": [torch.zeros(2)], "lr": -1.0}, InvalidHyperparameter, "lr is -1.0; expected a finite number >= 0"),
        ({"params": [torch.zeros(2)], "amsgrad": "no"}, TypeError, "amsgrad is 'no'; expected True or False"),
        ({"params": [torch.zeros(2)], "betas": 0.9}, TypeError, "betas is 0.9; expected two numbers"),
        ({"params": 2 * [torch.zeros(2)]}, ValueError, "group 1 has the same parameter twice"),
    ],
)
def test_a_bad_group_changes_nothing(server: Server, bad: dict[str, Any], error: type[Exception], words: str) -> None:
    pair = SideBySide(server, PRESET, adam)
    pair.train(0, 3)
    with pytest.raises(error, match=words):
        pair.remote.add_param_group(bad)
    assert len(pair.remote.param_groups) == 1
    pair.train(3)
    pair.assert_close()
    assert pair.remote.run.describe().step == STEPS


@pytest.mark.parametrize("key", ["amsgrad", "maximize", "decoupled_weight_decay"])
def test_what_cannot_change_during_a_run(server: Server, key: str) -> None:
    """The step is refused before anything is sent, and goes on when the group is as it was."""
    pair = SideBySide(server, PRESET, adam)
    pair.train(0, 3)
    pair.remote.param_groups[0][key] = True
    with pytest.raises(ValueError, match=f"group 0 has {key}=True now; the run was made with {key}=False"):
        pair.remote.step()
    pair.remote.param_groups[0][key] = False
    pair.train(3)
    pair.assert_close()


@pytest.mark.parametrize("key", ["optimized_update", "bias_correction", "schedule", "maximum_of"])
def test_what_only_gradwire_has_cannot_change_either(server: Server, key: str) -> None:
    optimizer = start(server, values())
    optimizer.param_groups[0][key] = "something else"
    with pytest.raises(ValueError, match=f"group 0 has {key}='something else' now"):
        optimizer.step()


@pytest.mark.parametrize("key", ["capturable", "differentiable"])
def test_what_is_not_supported_cannot_be_switched_on(server: Server, key: str) -> None:
    optimizer = start(server, values())
    optimizer.param_groups[0][key] = True
    with pytest.raises(NotImplementedError, match=f"{key}=True is not supported"):
        optimizer.step()


def test_parameters_that_were_exchanged_in_a_group(server: Server) -> None:
    """torch would step the new one; here it is not in the run."""
    optimizer = start(server, values())
    optimizer.param_groups[0]["params"][0] = torch.zeros(4, 3, requires_grad=True)
    with pytest.raises(ValueError, match="hold other parameters than the run was made for"):
        optimizer.step()


def test_bounds_are_a_key_of_a_group(server: Server) -> None:
    """What torch has no word for."""
    params = values()
    optimizer = start(server, [{"params": params[:1], "bounds": (-0.1, 0.1)}, {"params": params[1:]}], AMSGrad(lr=LR))
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert params[0].abs().max() <= 0.1
    assert params[4].abs().max() > 0.1
    optimizer.param_groups[0]["bounds"] = (0.5, 1.0)
    optimizer.step()
    assert params[0].min() == 0.5


def test_presets_that_torch_does_not_have_say_so_in_their_groups(server: Server) -> None:
    optimizer = start(server, values(), AMSGrad())
    assert optimizer.param_groups[0]["optimized_update"] is True
    assert "optimized_update" not in start(server, values(), TorchAdamW()).param_groups[0]
