"""Gradients that are not finite: refused, left out, or applied as they are, as the run's policy says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gradwire.client import AMSGrad, NonFiniteGradient, Run, Server, connect
from tests.faults.bare import fresh_name
from tests.faults.gated import gradient
from tests.serving import ServerProcess

COLUMNS = 30_000
"""Enough for a block of five steps to be sent in several slices."""

Gradients = dict[str, npt.NDArray[Any]]


@pytest.fixture
def server(process: ServerProcess) -> Iterator[Server]:
    with connect(process.target) as connection:
        yield connection


def make_run(server: Server, policy: str, **options: Any) -> Run:
    params = {"bias": gradient(4, 1), "weight": gradient(3 * COLUMNS, 2).reshape(3, COLUMNS)}
    return server.create_run(fresh_name(f"non-finite-{policy}"), params, AMSGrad(lr=0.01), non_finite=policy, **options)


def gradients(seed: int, steps: int | None = None) -> Gradients:
    rows = () if steps is None else (steps,)
    weight = gradient(3 * COLUMNS, seed, steps).reshape(*rows, 3, COLUMNS)
    return {"bias": gradient(4, seed + 100, steps), "weight": weight}


def everything(run: Run) -> list[bytes]:
    """All values of a run on the server, and its counts."""
    state = run.state_dict()
    parts = [str(state["step"]).encode()]
    for name, values in sorted(run.read().items()):
        parts.append(values.tobytes())
        parts += [np.asarray(state["tensors"][name][key]).tobytes() for key in sorted(state["tensors"][name])]
    return parts


# --- REJECT ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_reject_names_tensor_and_element(server: Server, value: float) -> None:
    run = make_run(server, "reject")
    run.step(gradients(1))
    before = everything(run)
    bad = gradients(2)
    bad["weight"][2, 7] = value
    with pytest.raises(NonFiniteGradient) as caught:
        run.step(bad)
    assert caught.value.applied is False
    assert caught.value.metadata["tensor"] == "weight"
    assert caught.value.metadata["block_step"] == "0"
    assert "'weight'" in str(caught.value)
    assert f"is {value} at its element {2 * COLUMNS + 7}" in str(caught.value)
    assert everything(run) == before
    assert run.step(gradients(3)).step == 2
    assert np.array_equal(run.params["weight"], run.read()["weight"])


def test_reject_refuses_the_whole_block(server: Server) -> None:
    run = make_run(server, "reject")
    before = everything(run)
    block = gradients(1, 5)
    block["bias"][3, 1] = np.nan
    for returns in ("last", "trajectory", "none"):
        with pytest.raises(NonFiniteGradient, match=r"'bias'.* at its element 1, in step 3 of the block") as caught:
            run.step_many(block, returns=returns)
        assert caught.value.metadata["block_step"] == "3"
        assert everything(run) == before
    run.step_many(gradients(1, 5))
    assert run.step_count == 5


def test_what_overflows_in_the_runs_dtype_is_not_finite(server: Server) -> None:
    run = make_run(server, "reject", gradient_encoding="float64")
    bad: Gradients = {name: values.astype(np.float64) for name, values in gradients(1).items()}
    bad["bias"][0] = 1e300
    with pytest.raises(NonFiniteGradient, match="is inf at its element 0"):
        run.step(bad)


def test_finite_numbers_whose_squares_overflow_are_accepted(server: Server) -> None:
    run = server.create_run(fresh_name("large"), {"w": np.zeros(3)}, AMSGrad(lr=0.01), dtype="float64")
    receipt = run.step({"w": np.array([1e200, -1e200, 1.0])})
    assert receipt.gradient_norm == math.inf
    assert receipt.step == 1


# --- SKIP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("returns", ["last", "trajectory", "none"])
def test_skip_leaves_out_the_steps_of_a_block(server: Server, returns: str) -> None:
    run, twin = make_run(server, "skip"), make_run(server, "skip")
    for each in (run, twin):
        each.step(gradients(1))
    block = gradients(2, 5)
    block["weight"][1, 0, 0] = np.nan
    block["bias"][3, 2] = np.inf
    values = run.step_many(block, returns=returns)
    assert run.last_receipt is not None
    assert run.last_receipt.skipped_steps == (1, 3)
    assert run.last_receipt.skipped
    assert run.last_receipt.step == 4
    finite = {name: rows[[0, 2, 4]] for name, rows in block.items()}
    expected = twin.step_many(finite, returns=returns)
    assert everything(run) == everything(twin)
    if returns == "last":
        assert np.array_equal(values["weight"], expected["weight"])
    elif returns == "trajectory":  # a step that is left out leaves the parameters where they were
        assert np.array_equal(values["weight"], expected["weight"][[0, 0, 1, 1, 2]])


def test_skip_of_a_single_step(server: Server) -> None:
    run = make_run(server, "skip")
    run.step(gradients(1))
    before = everything(run)
    bad = gradients(2)
    bad["bias"][0] = np.nan
    receipt = run.step(bad, lr=0.5)
    assert receipt.skipped_steps == (0,)
    assert receipt.step == 1
    assert math.isnan(receipt.gradient_norm)
    assert everything(run) == before
    assert np.array_equal(run.params["weight"], run.read()["weight"])
    # The block was committed, so its override holds.
    assert run.step(gradients(3)).learning_rates == (0.5,)


def test_skip_counts_present_tensors_only(server: Server) -> None:
    run = make_run(server, "skip")
    block: dict[str, Any] = {"bias": gradient(4, 1, 3)}
    block["bias"][1, 0] = np.nan
    run.step_many(block)
    tensors = run.state_dict()["tensors"]
    assert (tensors["bias"]["step"], tensors["weight"]["step"]) == (2, 0)


# --- ALLOW -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_allow_carries_it_into_that_element_alone(server: Server, value: float, encoding: str) -> None:
    """Through max and clamp too, and over the wire in both directions."""
    encodings: dict[str, Any] = {"gradient_encoding": encoding, "parameter_encoding": encoding}
    params = {"w": np.zeros(8, np.float32)}
    optimizer = AMSGrad(lr=0.01, bounds=(-1, 1))
    run, twin = (
        server.create_run(fresh_name("allow"), params, optimizer, non_finite="allow", **encodings) for _ in range(2)
    )
    bad = np.linspace(-1, 1, 8, dtype=np.float32)
    good = bad.copy()
    bad[3], good[3] = value, 0
    receipt = run.step({"w": bad})
    twin.step({"w": good})
    assert not math.isfinite(receipt.gradient_norm)
    assert receipt.step == 1
    for _ in range(2):  # a finite gradient does not heal it
        others = np.delete(np.arange(8), 3)
        assert math.isnan(run.params["w"][3])
        assert math.isnan(run.read()["w"][3])
        assert np.array_equal(run.params["w"][others], twin.params["w"][others])
        assert np.array_equal(run.read()["w"][others], twin.read()["w"][others])
        run.step({"w": good})
        twin.step({"w": good})


def test_allow_in_a_block(server: Server) -> None:
    run = server.create_run(fresh_name("allow"), {"w": np.zeros(2, np.float32)}, AMSGrad(), non_finite="allow")
    block = np.ones((4, 2), np.float32)
    block[2, 1] = np.nan
    trajectory = run.step_many({"w": block}, returns="trajectory")["w"]
    assert np.isnan(trajectory).tolist() == [[False, False], [False, False], [False, True], [False, True]]
    assert run.last_receipt is not None
    assert run.last_receipt.skipped_steps == ()
    assert math.isfinite(run.last_receipt.gradient_norm), "the norm is that of the block's last gradient"
