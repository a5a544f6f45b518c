"""``clip_value`` and ``clip_norm`` against ``torch.nn.utils``, over a real channel.

Parity with torch has the tolerance of test_torch_parity: torch adds the squares in the gradient's own type, the server
in float64, so the factors differ by some roundings, and each update by as many roundings of a hundredth of a parameter.
Where both sides are gradwire, equality is bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gradwire.client import AMSGrad, InvalidHyperparameter, NonFiniteGradient, ParamGroup, Run, Server, TorchAdam
from tests.integration.test_torch_parity import (
    FLOATS,
    STEPS,
    Tensor,
    assert_close,
    gradients,
    set_gradients,
    torch_parameters,
    values,
)

Gradients = dict[str, Tensor]

each_float = pytest.mark.parametrize("dtype", FLOATS)
CLIPPING = [{"clip_norm": 3.0}, {"clip_value": 0.5}, {"clip_norm": 1.5, "clip_value": 0.5}]
each_clipping = pytest.mark.parametrize("clipping", CLIPPING, ids=lambda clipping: "+".join(clipping))
COLUMNS = 10_000
"""A block of 20 rows of them takes several slices."""


def torch_clip(params: dict[str, torch.Tensor], clipping: dict[str, float]) -> None:
    """By value first; a norm of clamped gradients could not be told otherwise."""
    if "clip_value" in clipping:
        torch.nn.utils.clip_grad_value_(params.values(), clipping["clip_value"])
    if "clip_norm" in clipping:
        torch.nn.utils.clip_grad_norm_(params.values(), clipping["clip_norm"])


def norm(grads: Gradients) -> float:
    return math.sqrt(sum(float(np.square(value.astype(np.float64)).sum()) for value in grads.values()))


def assert_same_runs(one: Run, other: Run) -> None:
    """Parameters here and on the server, and the whole optimizer state; signs of zeros and NaN included."""
    state, theirs = one.state_dict(), other.state_dict()
    assert state["step"] == theirs["step"]
    for name, value in one.read().items():
        found = [value, one.params[name], *state["tensors"][name].values()]
        expected = [other.read()[name], other.params[name], *theirs["tensors"][name].values()]
        assert [np.asarray(part).tobytes() for part in found] == [np.asarray(part).tobytes() for part in expected]


@pytest.fixture
def create(server: Server, request: pytest.FixtureRequest) -> Callable[..., Run]:
    """Makes runs with names of this test's own."""
    made = 0

    def create(params: Any, optimizer: Any = None, **options: Any) -> Run:
        nonlocal made
        made += 1
        name = "".join(c if c.isalnum() else "-" for c in request.node.name)
        return server.create_run(f"clip-{name}-{made}", params, optimizer or AMSGrad(lr=1e-2), **options)

    return create


# --- torch -----------------------------------------------------------------------------------------------------------


@each_float
@each_clipping
def test_clipping_equals_torch(
    create: Callable[..., Run], clipping: dict[str, float], dtype: type[np.floating[Any]]
) -> None:
    """Three groups, a tensor that is absent for some steps; every second gradient is small enough to be left alone."""
    start = values(dtype, 0)
    split: list[tuple[list[str], dict[str, Any]]] = [
        (["weight", "bias"], {}),
        (["scale"], {"lr": 3e-3, "weight_decay": 0.3}),
        (["tiny"], {"amsgrad": True}),
    ]
    expected = torch_parameters(start)
    optimizer = torch.optim.Adam(
        [{"params": [expected[name] for name in names], **changes} for names, changes in split], lr=1e-2
    )
    groups = [ParamGroup({name: start[name] for name in names}, **changes) for names, changes in split]
    run = create(groups, TorchAdam(lr=1e-2), **clipping)
    assert run.dtype == dtype
    for step in range(STEPS):
        grads = gradients(dtype, step)
        if step % 2:
            grads = {name: np.asarray(value * dtype(0.1)) for name, value in grads.items()}
        set_gradients(expected, {name: np.array(value) for name, value in grads.items()})  # torch clips in place
        torch_clip(expected, clipping)
        changed = any((expected[name].grad != torch.from_numpy(grads[name])).any() for name in grads)  # type: ignore[union-attr]
        assert changed == (step % 2 == 0)
        optimizer.step()
        receipt = run.step(grads)
        assert receipt.gradient_norm == pytest.approx(norm(grads), rel=1e-12), "the norm before any clipping"
        for name, found in run.params.items():
            assert_close(found, expected[name])


@each_float
def test_clip_norm_of_zero_equals_torch(create: Callable[..., Run], dtype: type[np.floating[Any]]) -> None:
    """Nothing is left of the gradient; weight decay goes on."""
    start = values(dtype, 0)
    expected = torch_parameters(start)
    optimizer = torch.optim.Adam(expected.values(), lr=1e-2, weight_decay=0.1)
    run = create(start, TorchAdam(lr=1e-2, weight_decay=0.1), clip_norm=0)
    assert run.describe().spec.clip_norm == 0
    assert run.describe().spec.HasField("clip_norm")
    for step in range(5):
        set_gradients(expected, gradients(dtype, step))
        torch_clip(expected, {"clip_norm": 0.0})
        optimizer.step()
        assert run.step(gradients(dtype, step)).gradient_norm > 1
        for name, found in run.params.items():
            assert_close(found, expected[name])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@each_clipping
def test_allow_clips_what_is_not_finite_as_torch_does(
    create: Callable[..., Run], clipping: dict[str, float], bad: float
) -> None:
    """An infinity under clip_value is the limit; under clip_norm it is NaN and all others are zero."""
    start = {"x": np.zeros(3), "y": np.ones(2)}
    grads = {"x": np.array([1.0, bad, -3.0]), "y": np.array([2.0, 0.1])}
    expected = torch_parameters(start)
    optimizer = torch.optim.Adam(expected.values(), lr=1e-2)
    run = create(start, TorchAdam(lr=1e-2), non_finite="allow", **clipping)
    for _ in range(2):
        set_gradients(expected, {name: value.copy() for name, value in grads.items()})
        torch_clip(expected, clipping)
        optimizer.step()
        run.step(grads)
        for name, found in run.params.items():
            np.testing.assert_allclose(found, expected[name].numpy(), rtol=1e-14, atol=1e-16, equal_nan=True)


# --- untouched -------------------------------------------------------------------------------------------------------


@each_float
def test_gradients_below_the_threshold_are_untouched(create: Callable[..., Run], dtype: type[np.floating[Any]]) -> None:
    start = values(dtype, 0)
    grads = [gradients(dtype, step) for step in range(5)]
    largest = max(float(np.abs(value).max()) for row in grads for value in row.values())
    plain = create(start)
    clipped = create(start, clip_norm=max(map(norm, grads)) * 1.001 + 1e-5, clip_value=largest)
    for row in grads:
        plain.step(row)
        clipped.step(row)
    assert_same_runs(clipped, plain)


@each_clipping
def test_zero_gradients_stay_zero(create: Callable[..., Run], clipping: dict[str, float]) -> None:
    start = values(np.float32, 0)
    zeros = {name: np.zeros_like(value) for name, value in start.items()}
    plain, clipped = create(start), create(start, **clipping)
    for grads in (zeros, {}, zeros):
        plain.step(grads)
        assert clipped.step(grads).gradient_norm == 0
    assert_same_runs(clipped, plain)


# --- blocks and slices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("non_finite", ["reject", "skip", "allow"])
@pytest.mark.parametrize("returns", ["last", "trajectory"])
@each_clipping
def test_a_block_equals_single_steps(
    create: Callable[..., Run], clipping: dict[str, float], returns: str, non_finite: str
) -> None:
    """Each row has a norm, and a factor, of its own; ``b`` is absent from the second block."""
    random = np.random.default_rng(0)
    start = {name: random.normal(size=size).astype(np.float32) for name, size in (("x", COLUMNS), ("b", 7))}
    scales = np.geomspace(1e-3, 10, 20, dtype=np.float32)[::-1]
    block, single = (create(start, non_finite=non_finite, **clipping) for _ in range(2))
    for names in (("x", "b"), ("x",)):
        rows = {name: random.normal(size=(20, start[name].size)).astype(np.float32) for name in names}
        for value in rows.values():
            value *= scales[:, None]
        found = block.step_many(rows, returns=returns)
        for k in range(20):
            single.step({name: rows[name][k] for name in names})
            if returns == "trajectory":
                for name in start:
                    assert found[name][k].tobytes() == single.params[name].tobytes()
        assert block.last_receipt == single.last_receipt
    assert_same_runs(block, single)


def test_no_slice_is_answered_before_the_norm_is_known(create: Callable[..., Run]) -> None:
    """A vector of several slices, whose norm can be told exactly."""
    start = {"x": np.zeros(2**20, np.float32)}
    ones = np.ones_like(start["x"])
    clipped, plain = create(start, clip_norm=1.0), create(start)
    for scale in (1, 4):
        receipt = clipped.step({"x": scale * ones})
        assert receipt.gradient_norm == scale * 1024
        plain.step({"x": ones * np.float32(scale) * np.float32(1 / (scale * 1024 + 1e-6))})
    assert_same_runs(clipped, plain)
    assert clipped.params["x"].tobytes() == clipped.read()["x"].tobytes()


def test_many_rows_of_few_elements(create: Callable[..., Run]) -> None:
    rows = np.random.default_rng(0).normal(size=(50_000, 1)).astype(np.float32)
    clipped, plain = (create({"x": np.zeros(1, np.float32)}, **options) for options in ({"clip_norm": 0.25}, {}))
    clipped.step_many({"x": rows})
    # The norm of one element is its size, in float64 exactly.
    size = np.abs(rows.astype(np.float64))
    plain.step_many({"x": rows * np.minimum(1, 0.25 / (size + 1e-6)).astype(np.float32)})
    assert_same_runs(clipped, plain)


# --- gradients that are not finite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@each_clipping
def test_reject_looks_at_the_gradient_as_it_arrived(
    create: Callable[..., Run], clipping: dict[str, float], bad: float
) -> None:
    """clip_value would hide an infinity."""
    start = {"x": np.ones(3)}
    run, twin = create(start, **clipping), create(start, **clipping)
    block = np.ones((3, 3))
    block[1, 2] = bad
    with pytest.raises(NonFiniteGradient, match=f"is {bad} at its element 2, in step 1") as caught:
        run.step_many({"x": block})
    assert caught.value.applied is False
    for each in (run, twin):
        each.step({"x": block[0]})
    assert_same_runs(run, twin)


@each_clipping
def test_skip_leaves_out_rows_and_clips_the_others(create: Callable[..., Run], clipping: dict[str, float]) -> None:
    start = {"x": np.ones(3, np.float32)}
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) * 5
    run, twin = create(start, non_finite="skip", **clipping), create(start, **clipping)
    block = rows.copy()
    block[1, 0], block[4, 2] = np.nan, np.inf
    run.step_many({"x": block})
    assert run.last_receipt is not None
    assert run.last_receipt.skipped_steps == (1, 4)
    twin.step_many({"x": rows[[0, 2, 3, 5]]})
    assert_same_runs(run, twin)


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["clip_norm", "clip_value"])
def test_malformed_and_impossible_numbers_are_refused(server: Server, field: str) -> None:
    name = f"clip-bad-{field}"
    malformed: list[Any] = ["1", True, [1.0, 2.0], {}]
    for bad in malformed:
        with pytest.raises(TypeError, match=f"{field} is .*; expected a number"):
            server.create_run(name, {"x": [1.0]}, AMSGrad(), **{field: bad})
    for value in (-1, math.nan, math.inf):
        with pytest.raises(InvalidHyperparameter, match=f"{field} is .*; expected a finite number >= 0") as caught:
            server.create_run(name, {"x": [1.0]}, AMSGrad(), **{field: value})  # type: ignore[arg-type]
        assert caught.value.metadata["field"] == field
    assert name not in [run.name for run in server.list_runs()]


def test_a_run_says_how_it_clips_and_keeps_it(server: Server) -> None:
    start = {"x": np.zeros(2)}
    with server.create_run("clip-says", start, AMSGrad(), clip_norm=np.float64(0.5)) as run:
        spec = run.describe().spec
        assert (spec.clip_norm, spec.HasField("clip_value")) == (0.5, False)
    with server.create_run("clip-says", start, AMSGrad(), clip_value=9, on_existing="resume") as run:
        spec = run.describe().spec
        assert (spec.clip_norm, spec.HasField("clip_value")) == (0.5, False)
