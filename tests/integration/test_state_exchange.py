"""Optimizer state out of a run and into another one, and to and from ``torch.optim``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import gradwire.client.torch as gradwire_torch
from gradwire.client import Adam, AMSGrad, ParamGroup, Run, Server, TorchAdam, TorchAdamW, WeightDecay

Tensor = npt.NDArray[Any]
State = dict[str, Any]

SHAPES: dict[str, tuple[int, ...]] = {"w": (4, 3), "b": (3,), "scale": (), "none": (0, 2)}
HALF = 15
ATOL = 2 * HALF * 2.0**-52 * 4
"""One rounding of a float64 parameter of up to 4 for each step; see test_torch_parity."""
each_amsgrad = pytest.mark.parametrize("amsgrad", [False, True])


def values(seed: int, dtype: str = "float64") -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.normal(size=shape), dtype) for name, shape in SHAPES.items()}


def gradients(step: int) -> dict[str, Tensor]:
    """The bias has none at first, so that its t is another."""
    return {name: value for name, value in values(100 + step).items() if name != "b" or step > 4}


def two_groups(params: dict[str, Tensor]) -> list[ParamGroup]:
    return [
        ParamGroup({name: params[name] for name in ("w", "b")}),
        ParamGroup({n: params[n] for n in ("scale", "none")}),
    ]


class Local:
    """``torch.optim.Adam`` or ``AdamW`` over the same tensors in two groups, the second with an lr of its own."""

    def __init__(self, start: dict[str, Tensor], amsgrad: bool, kind: Callable[..., Any] = torch.optim.Adam) -> None:
        self.params = {name: torch.from_numpy(np.array(value)) for name, value in start.items()}
        tensors = list(self.params.values())
        groups = [{"params": tensors[:2]}, {"params": tensors[2:], "lr": 3e-3}]
        self.optimizer = kind(groups, lr=1e-2, weight_decay=0.1, amsgrad=amsgrad)

    def steps(self, first: int, count: int) -> None:
        for step in range(first, first + count):
            grads = gradients(step)
            for name, parameter in self.params.items():
                parameter.grad = torch.from_numpy(grads[name]) if name in grads else None
            self.optimizer.step()

    def assert_close(self, params: dict[str, Tensor]) -> None:
        for name, parameter in self.params.items():
            np.testing.assert_allclose(params[name], parameter.numpy(), rtol=0, atol=ATOL, err_msg=name)


def create(server: Server, name: str, start: dict[str, Tensor], amsgrad: bool, kind: type[Adam] = TorchAdam) -> Run:
    return server.create_run(
        name, two_groups(start), kind(lr=1e-2, weight_decay=0.1, amsgrad=amsgrad), on_existing="replace"
    )


def steps(run: Run, first: int, count: int) -> None:
    for step in range(first, first + count):
        run.step(gradients(step), lr=[1e-2, 3e-3])


@each_amsgrad
def test_training_begun_in_torch_goes_on_remotely(server: Server, amsgrad: bool) -> None:
    everything = Local(values(0), amsgrad)
    everything.steps(0, 2 * HALF)
    begun = Local(values(0), amsgrad)
    begun.steps(0, HALF)
    here = {name: parameter.numpy() for name, parameter in begun.params.items()}
    with create(server, "from-torch", here, amsgrad) as run:
        gradwire_torch.load_state_dict(run, begun.optimizer.state_dict())
        assert run.step_count == HALF
        steps(run, HALF, HALF)
        everything.assert_close(run.params)


@each_amsgrad
@pytest.mark.parametrize(("ours", "theirs"), [(TorchAdam, torch.optim.Adam), (TorchAdamW, torch.optim.AdamW)])
def test_training_begun_remotely_goes_on_in_torch(
    server: Server, ours: type[Adam], theirs: Callable[..., Any], amsgrad: bool
) -> None:
    """The hyperparameters travel too: the local optimizer is made with others, which its load_state_dict replaces."""
    everything = Local(values(0), amsgrad, theirs)
    everything.steps(0, 2 * HALF)
    with create(server, "to-torch", values(0), amsgrad, ours) as run:
        steps(run, 0, HALF)
        resumed = Local(run.params, amsgrad, theirs)
        for group in resumed.optimizer.param_groups:
            group.update(lr=7.0, weight_decay=7.0)
        resumed.optimizer.load_state_dict(gradwire_torch.state_dict(run))
    resumed.steps(HALF, HALF)
    everything.assert_close({name: parameter.numpy() for name, parameter in resumed.params.items()})


@each_amsgrad
def test_the_state_has_torch_s_own_keys_types_and_numbers(server: Server, amsgrad: bool) -> None:
    local = Local(values(0), amsgrad)
    local.steps(0, 3)
    with create(server, "keys", values(0), amsgrad) as run:
        steps(run, 0, 3)
        found = gradwire_torch.state_dict(run)
    expected = local.optimizer.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys() == {0, 2, 3}, "b has had no gradient yet"
    for index, theirs in expected["state"].items():
        ours = found["state"][index]
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            assert ours[name].dtype == value.dtype
            torch.testing.assert_close(ours[name], value, rtol=1e-14, atol=1e-14)


@each_amsgrad
def test_a_state_survives_the_way_to_torch_and_back_bit_for_bit(server: Server, amsgrad: bool) -> None:
    with create(server, "there", values(0), amsgrad) as run, create(server, "back", run.params, amsgrad) as other:
        steps(run, 0, HALF)
        gradwire_torch.load_state_dict(other, gradwire_torch.state_dict(run))
        assert_same_state(run.state_dict(), other.state_dict())


def assert_same_state(found: State, expected: State) -> None:
    assert found["step"] == expected["step"]
    assert found["tensors"].keys() == expected["tensors"].keys()
    for name, parts in expected["tensors"].items():
        assert found["tensors"][name].keys() == parts.keys()
        for part, value in parts.items():
            np.testing.assert_array_equal(found["tensors"][name][part], value, strict=True)


def test_tensors_without_state_begin_anew(server: Server) -> None:
    local = Local(values(0), amsgrad=True)
    local.steps(0, 3)
    with create(server, "no-state", values(0), amsgrad=True) as run:
        steps(run, 0, HALF)
        gradwire_torch.load_state_dict(run, local.optimizer.state_dict())
        tensors = run.state_dict()["tensors"]
    assert [tensors[name]["step"] for name in SHAPES] == [3, 0, 3, 3]
    assert all((tensors["b"][slot] == 0).all() for slot in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))


def test_amsgrad_of_one_group_alone(server: Server) -> None:
    """The run keeps a maximum for all tensors, torch for those of that group."""
    groups = two_groups(values(0))
    groups[1].hyperparameters["amsgrad"] = True
    with server.create_run("one-group", groups, TorchAdam(lr=1e-2)) as run:
        steps(run, 0, HALF)
        state = gradwire_torch.state_dict(run)
        assert ["max_exp_avg_sq" in state["state"][index] for index in range(4)] == [False, False, True, True]
        before = run.state_dict()
        steps(run, HALF, 1)
        gradwire_torch.load_state_dict(run, state)
        after = run.state_dict()
    for name in ("w", "b"):
        before["tensors"][name]["max_exp_avg_sq"][...] = 0  # never used
    assert_same_state(after, before)


def test_step_counts_beyond_float32_and_other_precisions(server: Server) -> None:
    with create(server, "precision", values(0, "float32"), amsgrad=False) as run:
        steps(run, 0, 1)
        state = run.state_dict()
        state["step"] = state["tensors"]["w"]["step"] = 2**24 + 1
        run.load_state_dict(state)
        exported = gradwire_torch.state_dict(run)
        assert int(exported["state"][0]["step"]) == 2**24 + 1
        exported["state"][0]["exp_avg"] = exported["state"][0]["exp_avg"].to(torch.bfloat16)
        exported["state"][2]["step"] = 5  # as very old versions of torch have it
        gradwire_torch.load_state_dict(run, exported)
        tensors = run.state_dict()["tensors"]
    expected = torch.from_numpy(state["tensors"]["w"]["exp_avg"]).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(tensors["w"]["exp_avg"], expected, strict=True)
    assert [tensors[name]["step"] for name in SHAPES] == [2**24 + 1, 0, 5, 1]


def _drop_maximum(state: State) -> None:
    del state["state"][0]["max_exp_avg_sq"]


def _say_no_amsgrad(state: State) -> None:
    state["param_groups"][0]["amsgrad"] = False


def _other_shape(state: State) -> None:
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].T


def _fewer_groups(state: State) -> None:
    del state["param_groups"][1]


def _fewer_tensors(state: State) -> None:
    state["param_groups"][0]["params"] = [0]


def _unknown_parameter(state: State) -> None:
    state["state"][9] = state["state"][0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop_maximum, "expected .*max_exp_avg_sq"),
        (_say_no_amsgrad, "amsgrad=False"),
        (_other_shape, r"exp_avg of tensor 'w' of shape \(4, 3\) has shape \(3, 4\)"),
        (_fewer_groups, r"groups of \[2\] tensors; .* has \[2, 2\]"),
        (_fewer_tensors, r"groups of \[1, 2\] tensors"),
        (_unknown_parameter, r"\[9\]"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    server: Server, spoil: Callable[[State], None], message: str
) -> None:
    with create(server, "misfit", values(0), amsgrad=True) as run:
        steps(run, 0, 3)
        before, epoch = run.state_dict(), run.describe().epoch
        state = gradwire_torch.state_dict(run)
        spoil(state)
        with pytest.raises(ValueError, match=message):
            gradwire_torch.load_state_dict(run, state)
        assert run.describe().epoch == epoch, "nothing was written"
        assert run.describe().attached_worker_id == run.worker_id
        assert_same_state(run.state_dict(), before)


def test_a_superfluous_maximum_is_refused(server: Server) -> None:
    with create(server, "superfluous", values(0), amsgrad=False) as run:
        steps(run, 0, 3)
        state = gradwire_torch.state_dict(run)
        state["state"][2]["max_exp_avg_sq"] = state["state"][2]["exp_avg_sq"]
        with pytest.raises(ValueError, match=r"'scale'.*max_exp_avg_sq"):
            gradwire_torch.load_state_dict(run, state)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (TorchAdam(amsgrad=True, maximum_of="bias-corrected"), "bias-corrected"),
        (AMSGrad(weight_decay=WeightDecay(0.1, absolute=True)), "absolute"),
    ],
)
def test_numbers_that_mean_something_else_to_torch_stay_here(server: Server, optimizer: Adam, message: str) -> None:
    with server.create_run("no-torch", values(0), optimizer, on_existing="replace") as run:
        run.step(gradients(5))
        with pytest.raises(ValueError, match=message):
            gradwire_torch.state_dict(run)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_state_dict_moves_a_run_to_another_bit_for_bit(server: Server, dtype: str) -> None:
    """300,001 elements: several slices for each slot. The twin then takes the same steps to the same bits."""
    random = np.random.default_rng(0)
    start = {"big": random.normal(size=300_001).astype(dtype), "x": np.zeros((), dtype)}
    grads = [{"big": random.normal(size=300_001).astype(dtype), "x": np.ones((), dtype)} for _ in range(4)]
    del grads[1]["big"]
    optimizer = AMSGrad(lr=1e-2, schedule="inverse-sqrt")
    with server.create_run(f"source-{dtype}", start, optimizer) as run:
        for each in grads[:3]:
            run.step(each)
        with server.create_run(f"copy-{dtype}", run.params, optimizer) as copy:
            copy.load_state_dict(run.state_dict())
            assert copy.step_count == 3
            assert_same_state(copy.state_dict(), run.state_dict())
            assert copy.step(grads[3]) == run.step(grads[3])
            for name, value in run.params.items():
                np.testing.assert_array_equal(copy.params[name], value, strict=True)


@pytest.mark.parametrize("spoil", ["tensor", "slot", "shape", "superfluous"])
def test_a_malformed_state_dict_changes_nothing(server: Server, spoil: str) -> None:
    with create(server, "malformed-state", values(0), amsgrad=False) as run:
        steps(run, 0, 2)
        before, epoch = run.state_dict(), run.describe().epoch
        state = run.state_dict()
        if spoil == "tensor":
            del state["tensors"]["b"]
        elif spoil == "slot":
            del state["tensors"]["b"]["exp_avg"]
        elif spoil == "shape":
            state["tensors"]["b"]["exp_avg"] = np.zeros(4)
        else:
            state["tensors"]["b"]["max_exp_avg_sq"] = np.zeros(3)
        with pytest.raises(ValueError, match="'b'"):
            run.load_state_dict(state)
        assert run.describe().epoch == epoch, "nothing was written"
        assert_same_state(run.state_dict(), before)


def test_without_torch_the_module_says_what_is_missing() -> None:
    code = "import sys; sys.modules['torch'] = None; import gradwire.client; import gradwire.client.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "pip install 'gradwire[torch]'" in done.stderr.splitlines()[-1]
