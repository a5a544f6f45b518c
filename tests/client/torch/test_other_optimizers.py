"""``SGD`` and ``Adagrad`` as a `RemoteOptimizer`, side by side with torch's: numbers, groups, state, checkpoints."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import gradwire.client.torch as gradwire_torch
from gradwire.client import SGD, Adagrad, FedAdam, LayoutMismatch, Optimizer, ParamGroup, Server, TorchAdam, Yogi
from gradwire.client.torch import RemoteOptimizer
from tests.client.torch.side_by_side import (
    STEPS,
    Tensors,
    assert_close,
    copies,
    gradients,
    new_name,
    set_gradients,
    values,
)

Theirs = type[torch.optim.Optimizer]
CASES: dict[str, tuple[type[Optimizer], Theirs, dict[str, Any]]] = {
    "sgd": (SGD, torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.1}),
    "momentum": (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adagrad": (
        Adagrad,
        torch.optim.Adagrad,
        {"lr": 0.05, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.3},
    ),
}
each_case = pytest.mark.parametrize("case", CASES)


def pair(
    server: Server, case: str, dtype: torch.dtype = torch.float64, groups: bool = False
) -> tuple[RemoteOptimizer, Tensors, torch.optim.Optimizer, Tensors]:
    """The same parameters twice, with ours and with torch's optimizer; two groups of them, where asked for."""
    ours, theirs, options = CASES[case]
    here = values(dtype=dtype)
    there = copies(here)

    def split(params: Tensors) -> Any:
        return [{"params": params[:2]}, {"params": params[2:], "lr": 0.01, "weight_decay": 0.2}] if groups else params

    remote = RemoteOptimizer(split(here), ours(**options), target=server, run=new_name())
    return remote, here, theirs(split(there), **options), there


def both(remote: RemoteOptimizer, here: Tensors, local: torch.optim.Optimizer, there: Tensors, step: int) -> None:
    for optimizer, params in ((remote, here), (local, there)):
        set_gradients(params, gradients(step, params))
        optimizer.step()


def assert_same_state(found: dict[str, Any], expected: dict[str, Any], params: Tensors) -> None:
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for index, entry in expected["state"].items():
        assert list(found["state"][index]) == list(entry)
        for key, value in entry.items():
            assert_close([found["state"][index][key]], [value], 4 * STEPS)


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_parameters_and_state_are_torch_s(server: Server, case: str, dtype: torch.dtype) -> None:
    remote, here, local, there = pair(server, case, dtype, groups=True)
    with remote:
        assert [list(group) for group in remote.param_groups] == [list(group) for group in local.param_groups]
        for step in range(STEPS):
            if step == 12:
                for optimizer in (remote, local):
                    optimizer.param_groups[0]["lr"] = 0.02
                    optimizer.param_groups[1]["weight_decay"] = 0.0
            both(remote, here, local, there, step)
        assert_close(here, there, 4 * STEPS)
        assert_same_state(remote.state_dict(), local.state_dict(), there)


@each_case
def test_a_checkpoint_goes_to_torch_and_back(server: Server, case: str) -> None:
    """Ours is loaded by torch's optimizer, torch's by ours; all go on as one that was never interrupted."""
    remote, here, local, there = pair(server, case)
    with remote:
        for step in range(4):
            both(remote, here, local, there, step)
        ours, theirs, options = CASES[case]
        moved_here, moved_there = copies(there), copies(here)
        to_torch = theirs(moved_there, **options)
        to_torch.load_state_dict(remote.state_dict())
        with RemoteOptimizer(moved_here, ours(**options), target=server, run=new_name()) as from_torch:
            from_torch.load_state_dict(local.state_dict())
            for step in range(4, 12):
                both(remote, here, local, there, step)
                both(from_torch, moved_here, to_torch, moved_there, step)
            for params in (here, moved_here, moved_there):
                assert_close(params, there, 4 * STEPS)


@each_case
def test_a_new_group_keeps_what_there_was(server: Server, case: str) -> None:
    remote, here, local, there = pair(server, case)
    with remote:
        for step in range(3):
            both(remote, here, local, there, step)
        more = values(3, torch.float64)
        theirs = copies(more)
        remote.add_param_group({"params": more, "lr": 0.1})
        local.add_param_group({"params": theirs, "lr": 0.1})
        for step in range(3, 8):
            both(remote, [*here, *more], local, [*there, *theirs], step)
        assert_close([*here, *more], [*there, *theirs], 4 * STEPS)
        assert_same_state(remote.state_dict(), local.state_dict(), there)


def test_state_that_is_edited_goes_to_the_server(server: Server) -> None:
    remote, here, local, there = pair(server, "momentum")
    with remote:
        for step in range(3):
            both(remote, here, local, there, step)
        for optimizer, params in ((remote, here), (local, there)):
            optimizer.state[params[0]]["momentum_buffer"].mul_(0.5)
            optimizer.state[params[4]].clear()  # its next step is a first one
        for step in range(3, 6):
            both(remote, here, local, there, step)
        assert_close(here, there, 4 * STEPS)


@pytest.mark.parametrize("case", ["momentum", "adagrad"])
def test_what_a_wrapper_keeps_beside_stays_its_own(server: Server, case: str) -> None:
    """Also under a key that another optimizer has."""
    key = "step" if case == "momentum" else "momentum_buffer"
    remote, here, local, there = pair(server, case)
    with remote:
        both(remote, here, local, there, 0)
        remote.state[here[0]][key] = 7
        both(remote, here, local, there, 1)
        assert remote.state[here[0]][key] == 7
        saved = remote.state_dict()
        assert saved["state"][0][key] == 7
        remote.load_state_dict(saved)
        assert remote.state[here[0]][key] == 7
        both(remote, here, local, there, 2)
        assert_close(here, there, 4 * STEPS)


def test_a_scheduler_moves_the_momentum(server: Server) -> None:
    remote, here, local, there = pair(server, "momentum")
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS) for optimizer in (remote, local)
    ]
    with remote:
        for step in range(STEPS - 1):
            both(remote, here, local, there, step)
            for scheduler in schedulers:
                scheduler.step()
        assert remote.param_groups[0]["momentum"] == local.param_groups[0]["momentum"] != 0.9
        assert_close(here, there, 4 * STEPS)


@each_case
def test_a_run_is_resumed_with_its_numbers(server: Server, case: str) -> None:
    ours, _, options = CASES[case]
    name, params = new_name(), values(dtype=torch.float64)
    with RemoteOptimizer(params, ours(**options), target=server, run=name) as first:
        set_gradients(params, gradients(0, params))
        first.param_groups[0]["lr"] = 0.5
        first.step()
        expected = copy.deepcopy(first.state_dict())
    again = values(9, torch.float64)
    with RemoteOptimizer(again, ours(**options), target=server, run=name, on_existing="resume") as second:
        assert_close(again, params, 0)
        assert second.param_groups[0]["lr"] == 0.5
        assert_same_state(second.state_dict(), expected, params)
    for preset in (TorchAdam(), ours(**{**options, "maximize": not options.get("maximize", False)})):
        with pytest.raises(LayoutMismatch, match="another optimizer"):
            RemoteOptimizer(again, preset, target=server, run=name, on_existing="resume")


def test_what_torch_has_not_is_refused(server: Server) -> None:
    for preset in (Yogi(), FedAdam()):
        with pytest.raises(TypeError, match="expected a preset such as TorchAdam"):
            RemoteOptimizer(values(), preset, target=server, run=new_name())
    with pytest.raises(NotImplementedError, match="differentiable"):
        RemoteOptimizer(values(), SGD(), target=server, run=new_name(), differentiable=True)
    with RemoteOptimizer(values(), SGD(momentum=0.9), target=server, run=new_name()) as remote:
        adams = torch.optim.Adam(values()).state_dict()
        with pytest.raises(ValueError, match=r"not one of torch.optim.SGD's: a parameter group has no momentum"):
            remote.load_state_dict(adams)
        remote.param_groups[0]["nesterov"] = True
        with pytest.raises(ValueError, match="has nesterov=True now; the run was made with nesterov=False"):
            remote.step()
    yogi = server.create_run(new_name(), {"x": np.zeros(2)}, Yogi())
    with yogi, pytest.raises(ValueError, match=r"the run's optimizer is yogi, and torch.optim has none like it"):
        gradwire_torch.state_dict(yogi)


@each_case
def test_a_run_of_numpy_exchanges_its_state_with_torch(server: Server, case: str) -> None:
    """Two groups; the second begins later, so that its tensors have no state yet."""
    ours, theirs, options = CASES[case]
    params = values(dtype=torch.float64)
    arrays = {str(index): param.detach().numpy().copy() for index, param in enumerate(params)}
    groups = [ParamGroup({name: arrays[name] for name in part}) for part in ("01", "234")]
    local = theirs([{"params": params[:2]}, {"params": params[2:]}], **options)
    with server.create_run(new_name(), groups, ours(**options)) as run:
        for step in range(4):
            grads = [*gradients(step, params)[:2], None, None, None]
            set_gradients(params, grads)
            local.step()
            run.step({str(k): grad.numpy() for k, grad in enumerate(grads) if grad is not None})
        assert_same_state(gradwire_torch.state_dict(run), local.state_dict(), params)
        with server.create_run(new_name(), groups, ours(**options)) as other:
            other.write(run.read())
            gradwire_torch.load_state_dict(other, local.state_dict())
            for step in range(4, 8):
                grads = gradients(step, params)
                set_gradients(params, grads)
                local.step()
                for one in (run, other):
                    one.step({str(k): grad.numpy() for k, grad in enumerate(grads) if grad is not None})
            for one in (run, other):
                assert_close([torch.from_numpy(one.params[str(k)]) for k in range(5)], params, 4 * STEPS)


def test_a_state_of_another_optimizer_is_refused_before_anything_is_sent(server: Server) -> None:
    states = {
        "Adam": torch.optim.Adam([torch.zeros(2)]).state_dict(),
        "SGD": torch.optim.SGD([torch.zeros(2)], momentum=0.9).state_dict(),
    }
    with server.create_run(new_name(), {"x": np.zeros(2)}, Adagrad()) as run:
        for state in states.values():
            with pytest.raises(ValueError, match=r"has no .*lr_decay.*, which torch.optim.Adagrad has"):
                gradwire_torch.load_state_dict(run, state)
