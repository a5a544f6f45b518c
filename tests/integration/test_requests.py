"""Requests at the edge: refused by name, bounded by the server's limits, or served however odd they look."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, Server
from gradwire.v1 import run_pb2, service_pb2, train_pb2
from gradwire.wire.errors import InvalidHyperparameter
from tests.contract.bare import BareClient, BareStream, group, refused
from tests.contract.deferred import headed, piece
from tests.faults.hosted import HostedServer, eventually
from tests.serving import ServerProcess

SLOTS = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
NAN = math.nan


@pytest.fixture
def bare(server_process: ServerProcess) -> Iterator[BareClient]:
    with BareClient(server_process.target) as client:
        yield client


# --- names and pages -------------------------------------------------------------------------------------------------


def test_every_call_for_a_run_that_is_not_there_says_so(bare: BareClient) -> None:
    for missing in ("runs/nothing", "nothing", "", "runs/", "runs/" + "x" * 10_000):
        for method in ("GetRun", "DeleteRun", "ReadParameters", "ReadState"):
            request = getattr(service_pb2, f"{method}Request")(name=missing)
            refused("RUN_NOT_FOUND", lambda method=method, request=request: bare.call(method, request))  # type: ignore[misc]
        for method in ("WriteParameters", "WriteState"):
            request = getattr(service_pb2, f"{method}Request")(header={"name": missing})
            refused("RUN_NOT_FOUND", lambda method=method, request=request: bare.call(method, iter([request])))  # type: ignore[misc]
        attach = train_pb2.Attach(run=missing, worker_id="w")
        refused("RUN_NOT_FOUND", lambda attach=attach: BareStream(bare.stub, attach))  # type: ignore[misc]


@pytest.fixture
def listed(bare: BareClient) -> str:
    """The resource name of a run among others."""
    bare.create("requests-page", [group(w=[1])], [0.0], replace=True)
    return "runs/requests-page"


@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 2**31, 2**32 - 1])
def test_absurd_page_sizes_are_capped(bare: BareClient, listed: str, size: int) -> None:
    page = bare.call("ListRuns", service_pb2.ListRunsRequest(page_size=size))
    assert 1 <= len(page.runs) <= min(size or 1000, 1000)


@pytest.mark.parametrize("token", ["zzz", "runs/", "\0", "\U0010ffff", "x" * 100_000], ids=ascii)
def test_a_page_token_of_ones_own_is_a_place_in_the_order(bare: BareClient, listed: str, token: str) -> None:
    page = bare.call("ListRuns", service_pb2.ListRunsRequest(page_token=token))
    assert all(run.name > token for run in page.runs)
    assert ("runs/requests-page" in [run.name for run in page.runs]) == (token < "runs/requests-page")


# --- limits ----------------------------------------------------------------------------------------------------------


def test_max_parameters_bounds_a_run() -> None:
    with HostedServer(max_parameters=10) as hosted, BareClient(hosted.target) as bare:
        bare.create("fits", [group(w=[5], v=[5])], [0.0] * 10)
        error = refused("TOO_MANY_PARAMETERS", lambda: bare.create("more", [group(w=[5], v=[6])], [0.0] * 11))
        assert error.info.metadata["max_parameters"] == "10"


def test_max_memory_bounds_runs_staging_results_and_copies_together() -> None:
    """A run of 1000 float32 with AMSGrad is 16,000 bytes, and 1,024 for its one tensor's name and place; gradients, a
    trajectory or a copy are 4,000 each row. SKIP: the gradients are kept until they are whole."""
    with HostedServer(max_memory=31_024) as hosted, BareClient(hosted.target) as bare:
        groups, zeros = [group(w=[1000])], [0.0] * 1000
        bare.create("one", groups, zeros, non_finite_policy=run_pb2.NON_FINITE_POLICY_SKIP)
        assert hosted.used_bytes == 17_024
        error = refused("MEMORY_LIMIT_EXCEEDED", lambda: bare.create("two", groups, zeros))
        assert dict(error.info.metadata) == {"applied": "false", "needed_bytes": "17024", "free_bytes": "14000"}
        with bare.attach("one") as stream:
            in_halves(stream, 1, 2)
            assert hosted.used_bytes == 25_024
            assert bare.read("one")[1] == zeros
            read_state = service_pb2.ReadStateRequest(name="runs/one")
            refused("MEMORY_LIMIT_EXCEEDED", lambda: bare.call("ReadState", read_state))
            refused("MEMORY_LIMIT_EXCEEDED", lambda: write_large_state(bare))
            refused("MEMORY_LIMIT_EXCEEDED", lambda: in_halves(stream, 2, 4))
        eventually(lambda: hosted.used_bytes == 17_024, "what the stream held is given back")
        with bare.attach("one") as stream:
            in_halves(stream, 2, 1, returns=train_pb2.RETURNS_TRAJECTORY)
            assert hosted.used_bytes == 25_024
        eventually(lambda: hosted.used_bytes == 21_024, "the trajectory is remembered")
        bare.call("DeleteRun", service_pb2.DeleteRunRequest(name="runs/one"))
        assert hosted.used_bytes == 0
        bare.create("two", groups, zeros)


def in_halves(stream: BareStream, sequence: int, steps: int, **header: Any) -> None:
    """A block of zeros for the run of 1000 elements, in two messages."""
    zeros = [0.0] * 500 * steps
    stream.send(
        headed(0, zeros, sequence=sequence, deferred=False, steps=steps, **header),
        piece(500, zeros, sequence=sequence, last=True),
    )
    list(stream.answer())


def write_large_state(bare: BareClient) -> None:
    state = service_pb2.StateHeader(tensor_steps=[0], slots=SLOTS)
    header = service_pb2.WriteStateHeader(name="runs/one", state=state)
    bare.call("WriteState", iter([service_pb2.WriteStateRequest(header=header)]))


# --- shapes and names that are allowed -------------------------------------------------------------------------------


def ones_like(values: dict[str, Any]) -> dict[str, Any]:
    return {key: np.ones_like(value) for key, value in values.items()}


def test_scalars_and_zero_length_tensors_are_tensors(server: Server) -> None:
    shapes: list[tuple[int, ...]] = [(0,), (), (3, 0, 2), (1, 1), (0,)]
    params = {f"t{i}": np.zeros(shape, np.float32) for i, shape in enumerate(shapes)}
    with server.create_run("requests-shapes", params, AMSGrad(lr=0.5)) as run:
        for _ in range(3):
            receipt = run.step(ones_like(run.params))
        assert {key: value.shape for key, value in run.read().items()} == {f"t{i}": s for i, s in enumerate(shapes)}
        assert run.params["t1"] == pytest.approx(-1.5, rel=1e-5)
        assert receipt.gradient_norm == pytest.approx(math.sqrt(2))
        trajectory = run.step_many({key: np.ones((2, *v.shape)) for key, v in run.params.items()}, returns="trajectory")
        assert trajectory["t2"].shape == (2, 3, 0, 2)
        assert [part["step"] for part in run.state_dict()["tensors"].values()] == [5] * 5


def test_a_run_of_nothing_but_zero_length_tensors_counts_its_steps(server: Server) -> None:
    with server.create_run("requests-empty", {"w": np.zeros((0, 3))}, AMSGrad()) as run:
        assert run.step({"w": np.zeros((0, 3))}).step == 1
        assert run.step({}).gradient_norm == 0
        assert run.read()["w"].shape == (0, 3)
        assert run.state_dict()["step"] == 2


def test_a_step_without_any_gradient_is_a_step_of_the_run_and_of_no_tensor(server: Server) -> None:
    with server.create_run("requests-absent", {"w": np.ones(2, np.float32)}, AMSGrad()) as run:
        receipt = run.step({"w": None})
        assert (receipt.step, receipt.gradient_norm) == (1, 0)
        assert run.params["w"].tolist() == [1, 1]
        assert run.state_dict()["tensors"]["w"]["step"] == 0


def test_1000_tensors(server: Server) -> None:
    """Of different sizes, every third absent in every second step; each as its own t says."""
    sizes = [1 + i % 7 for i in range(1000)]
    params = {f"layer.{i}": np.zeros(size, np.float32) for i, size in enumerate(sizes)}
    with server.create_run("requests-1000", params, AMSGrad(lr=0.25, betas=(0.9, 0.99))) as run:
        for step in range(4):
            grads = ones_like(params)
            run.step({key: v for i, (key, v) in enumerate(grads.items()) if step % 2 == 0 or i % 3})
        # A constant gradient moves every element by lr in each of its steps.
        for i, value in enumerate(run.params.values()):
            np.testing.assert_allclose(value, -0.25 * (4 if i % 3 else 2), rtol=1e-5)
        assert all(np.array_equal(value, run.params[key]) for key, value in run.read().items())


def test_names_with_odd_characters_come_back_as_they_were(server: Server) -> None:
    names = ["a/b.c:0", "名前", " ", "\n", "\0", "'\"\\", "🐉" * 128, "runs/x", "..", "%s{}", "é", "e\u0301"]
    params = {name: np.full((1,), i, np.float32) for i, name in enumerate(names)}
    server.create_run("requests-names", params, AMSGrad()).close()
    with server.attach("requests-names") as run:
        assert list(run.params) == names
        assert {key: value.tolist() for key, value in run.read().items()} == {n: [i] for i, n in enumerate(names)}
        assert list(run.state_dict()["tensors"]) == names
        run.step({"\0": np.ones(1, np.float32)})
        assert [key for key in names if run.read()[key] != params[key]] == ["\0"]


# --- the Python client, before it sends ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grads", "error", "what"),
    [
        ({"w": np.ones(3, np.float32)}, ValueError, r"'w' has shape \(3,\); expected \(2,\)"),
        ({"w": np.ones((1, 2), np.float32)}, ValueError, r"'w' has shape \(1, 2\)"),
        ({"w": np.float32(1)}, ValueError, r"'w' has shape \(\)"),
        ({"W": np.ones(2, np.float32)}, ValueError, r"the gradients name \['W'\]"),
        ({"w": np.ones(2, np.int32)}, TypeError, "'w' has dtype int32"),
        ({"w": np.ones(2, np.complex64)}, TypeError, "'w' has dtype complex64"),
        ({"w": "up"}, TypeError, "'w' has dtype <U2"),
    ],
    ids=["longer", "2-d", "scalar", "unknown", "integers", "complex", "text"],
)
def test_malformed_gradients_are_not_sent(server: Server, grads: Any, error: type[Exception], what: str) -> None:
    params = {"w": np.zeros(2, np.float32), "v": np.zeros(1, np.float32)}
    with server.create_run("requests-grads", params, AMSGrad(), on_existing="replace") as run:
        with pytest.raises(error, match=what):
            run.step({"v": np.ones(1, np.float32), **grads})
        assert not run.stale
        assert run.step(ones_like(params)).step == 1


def test_bad_numbers_as_overrides_are_the_servers_refusal_and_leave_the_run(server: Server) -> None:
    with server.create_run("requests-lr", {"w": np.zeros(2, np.float32)}, AMSGrad(lr=0.5)) as run:
        bad: list[dict[str, Any]] = [{"lr": NAN}, {"lr": -1.0}, {"overrides": {0: {"betas": (0.9, NAN)}}}]
        for keywords in bad:
            with pytest.raises(InvalidHyperparameter, match="override of group 0"):
                run.step(ones_like(run.params), **keywords)
        assert run.step(ones_like(run.params)).learning_rates == (0.5,)
        assert run.step_count == 1
