"""A block of K steps equals K single steps bit for bit, and answers what it was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gradwire.client import AMSGrad, ParamGroup, Run, Server, TorchAdam
from gradwire.client.transport.stream import TrainStream

Tensor = npt.NDArray[Any]

AMSGRAD = AMSGrad(lr=1e-2, schedule="inverse-sqrt", weight_decay=0.1, bounds=(-2.0, 2.0))


def normal(seed: int, *shape: int) -> Tensor:
    return np.asarray(np.random.default_rng(seed).normal(size=shape), np.float32)


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    np.testing.assert_array_equal(found, expected, strict=True)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


def assert_same_runs(one: Run, other: Run) -> None:
    """Parameters here and on the server, and the whole optimizer state."""
    theirs, state = other.read(), other.state_dict()
    assert one.step_count == other.step_count == state["step"]
    for name, value in one.read().items():
        assert_same_bits(value, theirs[name])
        assert_same_bits(one.params[name], other.params[name])
    for name, parts in one.state_dict()["tensors"].items():
        for part, value in parts.items():
            assert_same_bits(np.asarray(value), np.asarray(state["tensors"][name][part]))


def pair(server: Server, name: str, start: dict[str, Tensor]) -> tuple[Run, Run]:
    """Two runs that begin alike."""
    return server.create_run(f"{name}-block", start, AMSGRAD), server.create_run(f"{name}-single", start, AMSGRAD)


@pytest.mark.parametrize("returns", ["last", "trajectory"])
@pytest.mark.parametrize(
    ("size", "steps"),
    [
        pytest.param(1, 1, id="one_element_one_step"),
        pytest.param(1, 2000, id="one_element_2000_steps"),
        pytest.param(10_000, 20, id="10k_elements_several_slices"),
        pytest.param(300_000, 7, id="300k_elements_17_slices"),
    ],
)
def test_a_block_equals_single_steps(server: Server, returns: str, size: int, steps: int) -> None:
    block, single = pair(server, f"equal-{returns}-{size}-{steps}", {"x": normal(0, size)})
    for seed in (1, 2):
        grads = normal(seed, steps, size)
        found = block.step_many({"x": grads}, returns=returns)["x"]
        for k, row in enumerate(grads):
            single.step({"x": row})
            if returns == "trajectory":
                assert_same_bits(found[k], single.params["x"])
        if returns == "last":
            assert_same_bits(found, single.params["x"])
        assert block.last_receipt == single.last_receipt
    assert_same_runs(block, single)


def test_a_trajectory_shows_absent_tensors_as_they_are(server: Server) -> None:
    start = {"a": normal(0, 3), "b": normal(1, 2, 2), "c": normal(2)}
    block, single = pair(server, "absent", start)
    for absent in ("b", "ac", ""):
        grads = {name: normal(3, 5, *start[name].shape) for name in start if name not in absent}
        found = block.step_many(grads, returns="trajectory")
        for k in range(5):
            single.step({name: grads[name][k] for name in grads})
            for name in start:
                assert found[name].shape == (5, *start[name].shape)
                assert_same_bits(np.asarray(found[name][k]), single.params[name])
    assert_same_runs(block, single)


def test_last_returns_copies_in_the_tensors_shapes(server: Server) -> None:
    run = server.create_run("copies", {"w": normal(0, 2, 3), "b": normal(1)}, AMSGRAD)
    found = run.step_many({"w": normal(2, 4, 2, 3), "b": normal(3, 4)})
    kept = {name: value.copy() for name, value in found.items()}
    assert {name: value.shape for name, value in found.items()} == {"w": (2, 3), "b": ()}
    run.step({"w": normal(4, 2, 3), "b": normal(5)})
    for name, value in found.items():
        assert_same_bits(value, kept[name])


@pytest.mark.parametrize("double_buffer", [False, True])
def test_none_returns_nothing_and_params_stay_old_until_a_step(server: Server, double_buffer: bool) -> None:
    start = {"x": normal(0, 100), "y": normal(1, 10)}
    run = server.create_run(f"none-{double_buffer}", start, AMSGRAD, double_buffer=double_buffer)
    single = server.create_run(f"none-{double_buffer}-single", start, AMSGRAD)
    grads = {"x": normal(2, 4, 100), "y": normal(3, 4, 10)}
    assert run.step_many(grads, returns="none") == {}
    assert run.last_receipt is not None
    assert run.last_receipt.step == 4
    for name in start:
        assert_same_bits(run.params[name], start[name])
    for k in range(4):
        single.step({name: grads[name][k] for name in start})
    # A step that moves x alone is answered with x alone, but y has moved before it.
    for each in (run, single):
        each.step({"x": normal(4, 100)})
    assert_same_runs(run, single)
    assert run.step_many({"x": normal(5, 2, 100)}, returns="none") == {}
    found = run.step_many({"y": normal(6, 2, 10)}, returns="trajectory")["x"]
    assert_same_bits(found[0], run.read()["x"])


def test_skipped_steps_of_a_block_repeat_the_row_before(server: Server) -> None:
    run = server.create_run("skipped", {"x": normal(0, 2)}, AMSGRAD, non_finite="skip")
    single = server.create_run("skipped-single", {"x": normal(0, 2)}, AMSGRAD, non_finite="skip")
    grads = normal(1, 6, 2)
    grads[[0, 3], 1] = np.nan, np.inf
    found = run.step_many({"x": grads}, returns="trajectory")["x"]
    for k, row in enumerate(grads):
        assert single.step({"x": row}).skipped == (k in (0, 3))
        assert_same_bits(found[k], single.params["x"])
    assert_same_bits(found[0], normal(0, 2))
    assert run.last_receipt is not None
    assert run.last_receipt.skipped_steps == (0, 3)
    assert_same_runs(run, single)


def test_overrides_hold_for_the_whole_block_and_stay(server: Server) -> None:
    start = {"a": normal(0, 3), "b": normal(1, 3)}
    groups = [ParamGroup({"a": start["a"]}), ParamGroup({"b": start["b"]}, lr=0.1)]
    block, single = (server.create_run(f"overrides-{kind}", groups, TorchAdam()) for kind in ("block", "single"))
    grads = {name: normal(2, 3, 3) for name in start}
    changes = {1: {"betas": (0.5, 0.6), "eps": 0.1}}
    block.step_many(grads, lr=[0.3, 0.2], overrides=changes)
    for k in range(3):
        single.step(
            {name: grads[name][k] for name in start},
            lr=[0.3, 0.2] if k == 0 else None,
            overrides=changes if k == 0 else None,
        )
    for run in (block, single):
        assert run.step({name: normal(3, 3) for name in start}).learning_rates == (0.3, 0.2)
    assert_same_runs(block, single)


@pytest.mark.parametrize(
    ("grads", "returns", "error", "message"),
    [
        pytest.param({"x": normal(0, 2, 3)}, "all", ValueError, "returns is 'all'", id="unknown_returns"),
        pytest.param({}, "last", ValueError, "expected the same K", id="no_gradient_at_all"),
        pytest.param({"x": None, "y": None}, "last", ValueError, "expected the same K", id="all_none"),
        pytest.param({"x": normal(0, 2, 3), "y": normal(0, 3)}, "last", ValueError, r"\[2, 3\] rows", id="two_ks"),
        pytest.param({"x": normal(0, 0, 3)}, "last", ValueError, r"\[0\] rows", id="no_rows"),
        pytest.param({"y": normal(0)}, "last", ValueError, "rows", id="no_axis_for_the_steps"),
        pytest.param({"x": normal(0, 2, 4)}, "last", ValueError, r"\(2, 4\); expected \(2, 3\)", id="wrong_shape"),
        pytest.param({"z": normal(0, 2, 3)}, "last", ValueError, "'z'", id="unknown_name"),
        pytest.param({"x": np.ones((2, 3), np.int64)}, "last", TypeError, "int64", id="whole_numbers"),
    ],
)
def test_malformed_blocks_are_refused_before_anything_is_sent(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    grads: dict[str, Any],
    returns: str,
    error: type[Exception],
    message: str,
) -> None:
    start = {"x": normal(0, 3), "y": normal(1)}
    run = server.create_run("malformed", start, AMSGRAD, on_existing="replace")
    sent: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(TrainStream, "send", lambda self, messages: sent.append(messages))
        with pytest.raises(error, match=message):
            run.step_many(grads, returns=returns)
    assert sent == []
    assert not run.stale
    assert run.step({"x": normal(2, 3), "y": normal(3)}).step == 1
