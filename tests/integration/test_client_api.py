"""What a user of ``gradwire.client`` calls, on a real server; blocks, encodings and state have files of their own."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import gradwire.client.transport.discovery as discovery_module
from gradwire.client import (
    Adam,
    AMSGrad,
    ConnectionLost,
    Fenced,
    InvalidHyperparameter,
    InvalidSpec,
    LayoutMismatch,
    NonFiniteGradient,
    ParamGroup,
    Run,
    RunAlreadyExists,
    RunBusy,
    RunNotFound,
    Server,
    TorchAdam,
    connect,
)
from gradwire.client.transport.stream import TrainStream
from tests.children import child
from tests.serving import ServerProcess

Tensor = npt.NDArray[Any]
Params = dict[str, Tensor]

SIGN = TorchAdam(lr=1.0, betas=(0.0, 0.0), eps=0.0)
"""Each step subtracts ``lr * sign(g)``: results are whole numbers, whatever happened in between shows."""


def ones(*shape: int) -> Tensor:
    return np.ones(shape, np.float32)


def zeros(*shape: int) -> Tensor:
    return np.zeros(shape, np.float32)


def as_lists(params: Params) -> dict[str, Any]:
    return {name: value.tolist() for name, value in params.items()}


@pytest.fixture
def run(server: Server, request: pytest.FixtureRequest) -> Iterator[Run]:
    """w of shape (2, 2) and b of shape (2), all zero; steps subtract signs."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    yield server.create_run(name, {"w": zeros(2, 2), "b": zeros(2)}, SIGN)
    server.delete_run(name)


@pytest.fixture
def other(server_process: ServerProcess) -> Iterator[Server]:
    """A second connection to the same server."""
    with connect(server_process.target) as connection:
        yield connection


# --- params ------------------------------------------------------------------------------------------------------


def test_params_are_copies_that_are_updated_in_place(server: Server) -> None:
    mine = {"w": ones(2, 3), "b": ones(3)}
    with server.create_run("in-place", mine, SIGN) as run:
        arrays = dict(run.params)
        assert not any(np.shares_memory(mine[name], arrays[name]) for name in mine)
        run.step(mine)
        run.step_many({name: np.stack([value] * 2) for name, value in mine.items()})
        run.step_many({name: np.stack([value] * 2) for name, value in mine.items()}, returns="trajectory")
        run.refresh()
        assert all(run.params[name] is array for name, array in arrays.items())
        assert as_lists(arrays) == {"w": [[-4.0] * 3] * 2, "b": [-4.0] * 3}
        run.write({"w": 5 * ones(2, 3), "b": ones(3)})
        assert all(run.params[name] is array for name, array in arrays.items())
        assert as_lists(arrays) == {"w": [[5.0] * 3] * 2, "b": [1.0] * 3}
        assert run.step(mine).step == 6, "a write is no step, and the writer goes on"
        assert as_lists(arrays) == {"w": [[4.0] * 3] * 2, "b": [0.0] * 3}
    assert as_lists(mine) == {"w": [[1.0] * 3] * 2, "b": [1.0] * 3}


def test_read_gives_fresh_arrays(run: Run) -> None:
    run.step({"w": ones(2, 2)})
    found = run.read()
    assert as_lists(found) == as_lists(run.params) == {"w": [[-1.0] * 2] * 2, "b": [0.0] * 2}
    found["w"][:] = 9
    assert as_lists(run.read()) == as_lists(run.params)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([zeros(1), np.zeros(1)], None, "float32"),
        ([np.zeros(1), np.zeros(())], None, "float64"),
        ([np.zeros(1), 0.5], None, "float64"),
        ([0.1, [1.0, 2.0]], None, "float32"),
        ([np.float64(0.1)], None, "float64"),
        ([np.zeros(1), np.zeros(1)], "float32", "float32"),
        ([0.1, zeros(1)], "float64", "float64"),
    ],
)
def test_the_run_s_dtype(server: Server, values: list[Any], dtype: str | None, expected: str) -> None:
    params = {f"p{i}": value for i, value in enumerate(values)}
    with server.create_run("dtype", params, SIGN, dtype=dtype, on_existing="replace") as run:
        assert run.dtype == expected
        for name, value in params.items():
            assert run.read()[name].tolist() == np.asarray(value, expected).tolist()


# --- creating, attaching, listing, deleting ----------------------------------------------------------------------


def test_an_existing_run_is_an_error_by_default(server: Server, run: Run) -> None:
    run.step({"w": ones(2, 2)})
    with pytest.raises(RunAlreadyExists, match="at step 1"):
        server.create_run(run.name, {"x": zeros(1)}, SIGN)
    assert run.step({"w": ones(2, 2)}).step == 2


def test_resume_goes_on_with_the_values_and_the_optimizer_of_the_run(server: Server, run: Run) -> None:
    run.step({"w": ones(2, 2)}, lr=3.0)
    run.close()
    params = {"w": 7 * ones(2, 2), "b": 7 * ones(2)}
    with server.create_run(run.name, params, Adam(), on_existing="resume") as resumed:
        assert (resumed.step_count, as_lists(resumed.params)) == (1, {"w": [[-3.0] * 2] * 2, "b": [0.0] * 2})
        assert resumed.step({"b": ones(2)}).learning_rates == (3.0,)


def test_resume_creates_a_run_that_is_not_there(server: Server) -> None:
    with server.create_run("resumed-first", {"x": 7 * ones(1)}, SIGN, on_existing="resume") as run:
        assert (run.step_count, as_lists(run.params)) == (0, {"x": [7.0]})


@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"w": zeros(2, 2)}, id="tensor_missing"),
        pytest.param({"w": zeros(4), "b": zeros(2)}, id="shape"),
        pytest.param({"b": zeros(2), "w": zeros(2, 2)}, id="order"),
        pytest.param({"w": np.zeros((2, 2)), "b": np.zeros(2)}, id="dtype"),
        pytest.param([ParamGroup({"w": zeros(2, 2)}), ParamGroup({"b": zeros(2)})], id="groups"),
    ],
)
def test_resume_with_other_tensors_is_a_layout_mismatch(server: Server, run: Run, params: Any) -> None:
    run.close()
    with pytest.raises(LayoutMismatch):
        server.create_run(run.name, params, SIGN, on_existing="resume")


def test_replace_begins_anew_and_ends_the_old_run(server: Server, run: Run) -> None:
    run.step({"w": ones(2, 2)})
    with server.create_run(run.name, {"x": 5 * ones(3)}, AMSGrad(lr=0.5), on_existing="replace") as new:
        assert (new.step_count, as_lists(new.params)) == (0, {"x": [5.0] * 3})
        with pytest.raises(RunNotFound):
            run.step({"w": ones(2, 2)})
        assert new.step({"x": ones(3)}).learning_rates == (0.5,)


def test_attach_reads_step_and_parameters(server: Server, other: Server, run: Run) -> None:
    run.step({"b": ones(2)})
    with pytest.raises(RunBusy) as refused:
        other.attach(run.name)
    assert refused.value.metadata["attached_worker_id"] == run.worker_id
    run.close()
    with other.attach(run.name) as attached:
        assert (attached.step_count, as_lists(attached.params)) == (1, {"w": [[0.0] * 2] * 2, "b": [-1.0] * 2})
        assert attached.step({"b": ones(2)}).step == 2
    with pytest.raises(RunNotFound, match="runs/nowhere"):
        server.attach("nowhere")


def test_list_and_delete(server: Server, run: Run) -> None:
    run.step_many({"w": ones(3, 2, 2)})
    names = [summary.name for summary in server.list_runs()]
    assert names == sorted(names)
    mine = next(summary for summary in server.list_runs() if summary.name == run.name)
    assert (mine.step, mine.elements, mine.dtype, mine.attached_worker_id) == (3, 6, "float32", run.worker_id)
    server.create_run("short-lived", {"x": zeros(1)}, SIGN).step({"x": ones(1)})
    assert server.delete_run("short-lived") == 1
    assert "short-lived" not in [summary.name for summary in server.list_runs()]
    with pytest.raises(RunNotFound):
        server.delete_run("short-lived")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"on_existing": "overwrite"}, ValueError, "on_existing is 'overwrite'", id="on_existing"),
        pytest.param({"non_finite": "ignore"}, ValueError, "non_finite is 'ignore'", id="non_finite"),
        pytest.param({"dtype": "float16"}, ValueError, "dtype is 'float16'", id="dtype"),
        pytest.param({"name": "no/slashes"}, InvalidSpec, "no run name", id="name"),
        pytest.param({"buffers": 2}, TypeError, "buffers", id="option"),
        pytest.param({"params": {"x": np.zeros(1, np.int64)}}, TypeError, "int64", id="integers"),
        pytest.param({"params": {}}, InvalidSpec, "has no tensors", id="no_tensors"),
        pytest.param({"params": [ParamGroup({"x": 0.0}), ParamGroup({"x": 0.0})]}, InvalidSpec, "twice", id="twice"),
        pytest.param({"params": [ParamGroup({"x": 0.0}, rate=1.0)]}, TypeError, "'rate'", id="hyperparameter"),
        pytest.param({"optimizer": AMSGrad(lr=-1.0)}, InvalidHyperparameter, "group 0: lr is -1.0", id="range"),
    ],
)
def test_malformed_creations(server: Server, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"name": "malformed-creation", "params": {"x": zeros(1)}, "optimizer": SIGN}
    with pytest.raises(error, match=message):
        server.create_run(**{**good, **arguments})
    assert "malformed-creation" not in [summary.name for summary in server.list_runs()]


# --- who holds a run ---------------------------------------------------------------------------------------------


def test_a_write_fences_another_attached_stream(server: Server, other: Server, run: Run) -> None:
    """The holder learns of it at its next step, reads the new values before the one after, and goes on."""
    run.close()
    writer = other.attach(run.name)
    writer.close()
    run.step({"w": ones(2, 2)})
    writer.write({"w": 50 * ones(2, 2), "b": 60 * ones(2)})
    with pytest.raises(Fenced):
        run.step({"w": ones(2, 2)})
    assert (run.stale, run.step({"w": ones(2, 2)}).step, run.stale) == (True, 2, False)
    assert as_lists(run.params) == as_lists(run.read()) == {"w": [[49.0] * 2] * 2, "b": [60.0] * 2}


def test_writes_are_whole_or_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="lack \\['b'\\]"):
        run.write({"w": ones(2, 2)})
    with pytest.raises(ValueError, match="'b' has shape \\(3,\\)"):
        run.write({"w": ones(2, 2), "b": ones(3)})
    assert as_lists(run.read()) == as_lists(run.params) == {"w": [[0.0] * 2] * 2, "b": [0.0] * 2}


def test_worker_ids(server: Server, other: Server, run: Run) -> None:
    """Another id needs a takeover; the same id attaching again wins; each `Run` has an id of its own by default."""
    run.close()
    first = server.attach(run.name, worker_id="left")
    with pytest.raises(RunBusy):
        other.attach(run.name, worker_id="right")
    second = other.attach(run.name, worker_id="left")
    with pytest.raises(Fenced):
        first.step({"w": ones(2, 2)})
    third = server.attach(run.name, worker_id="right", takeover=True)
    with pytest.raises(Fenced):
        second.step({"w": ones(2, 2)})
    assert third.step({"w": ones(2, 2)}).step == 1
    assert run.worker_id not in ("left", "right", "")
    assert third.describe().attached_worker_id == third.worker_id == "right"
    third.close()
    assert server.attach(run.name).worker_id != run.worker_id


def test_context_managers_give_runs_back(server_process: ServerProcess, server: Server) -> None:
    with connect(server_process.target) as inner:
        with inner.create_run("given-back", {"x": zeros(1)}, SIGN) as run:
            assert run.describe().attached_worker_id == run.worker_id
        assert run.describe().attached_worker_id == ""
        assert run.step({"x": ones(1)}).step == 1, "a closed run attaches again"
        assert run.describe().attached_worker_id == run.worker_id
    with server.attach("given-back") as again:
        assert again.step({"x": ones(1)}).step == 2


# --- receipts, learning rates, norms -----------------------------------------------------------------------------


def test_lr_for_all_groups_or_for_each_stays_in_force(server: Server) -> None:
    groups = [ParamGroup({"a": zeros(1)}), ParamGroup({"b": zeros(1)}, lr=2.0)]
    grads = {"a": ones(1), "b": ones(1)}
    four: Any = np.float32(4.0)
    with server.create_run("rates", groups, SIGN) as run:
        assert run.step(grads).learning_rates == (1.0, 2.0)
        assert run.step(grads, lr=four).learning_rates == (4.0, 4.0)
        assert run.step(grads, lr=[8.0, 16.0]).learning_rates == (8.0, 16.0)
        assert run.step(grads, overrides={1: {"lr": 32.0}}).learning_rates == (8.0, 32.0)
        assert run.step(grads).learning_rates == (8.0, 32.0)
        assert as_lists(run.params) == {"a": [-29.0], "b": [-86.0]}
        assert [group.adam.lr for group in run.describe().spec.groups] == [8.0, 32.0]


def test_inverse_sqrt_learning_rates(server: Server) -> None:
    with server.create_run("inverse-sqrt", {"x": zeros(1)}, Adam(lr=0.5, schedule="inverse-sqrt")) as run:
        rates = [run.step({"x": ones(1)}, lr=3.0 if step == 4 else None).learning_rates for step in range(1, 6)]
    np.testing.assert_allclose(
        np.ravel(rates), [0.5, 0.5 / np.sqrt(2), 0.5 / np.sqrt(3), 3.0 / 2.0, 3.0 / np.sqrt(5)], rtol=2**-52
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lr": float("nan")}, InvalidHyperparameter, "override of group 0: lr is nan"),
        ({"lr": [-1.0]}, InvalidHyperparameter, "lr is -1.0"),
        ({"lr": [1.0, 1.0]}, ValueError, "lr has 2 values"),
        ({"lr": ["fast"]}, TypeError, "'fast'"),
        ({"overrides": {0: {"betas": (0.5, 1.0)}}}, InvalidHyperparameter, "beta2 is 1.0"),
        ({"overrides": {0: {"bounds": (1.0, 0.0)}}}, InvalidHyperparameter, "low <= high"),
        ({"overrides": {0: {"amsgrad": True}}}, TypeError, "'amsgrad' cannot change"),
        ({"overrides": {1: {"lr": 1.0}}}, ValueError, "group 1"),
    ],
)
def test_bad_hyperparameters_leave_the_run_as_it_is(
    run: Run, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run.step({"w": ones(2, 2)}, **changes)
    receipt = run.step({"w": ones(2, 2)})
    assert (receipt.step, receipt.learning_rates) == (1, (1.0,))
    assert as_lists(run.params) == {"w": [[-1.0] * 2] * 2, "b": [0.0] * 2}


def test_an_override_of_a_refused_step_does_not_stay(run: Run) -> None:
    with pytest.raises(NonFiniteGradient):
        run.step({"w": np.nan * ones(2, 2)}, lr=5.0)
    assert run.step({"w": ones(2, 2)}).learning_rates == (1.0,)


def test_gradient_norm_is_numpy_s_over_what_was_sent(server: Server) -> None:
    random = np.random.default_rng(0)
    start = {"big": zeros(200_000), "small": zeros(3, 3), "scalar": zeros()}
    with server.create_run("norm", start, SIGN) as run:
        for absent in ("", "big", "small"):
            grads = {n: np.asarray(random.normal(size=v.shape), np.float32) for n, v in start.items() if n != absent}
            norm = np.linalg.norm(np.concatenate([value.ravel() for value in grads.values()]).astype(np.float64))
            np.testing.assert_allclose(run.step(grads).gradient_norm, norm, rtol=1e-13)
        assert run.step({}).gradient_norm == 0.0


def test_missing_and_none_gradients_leave_a_tensor_alone(run: Run) -> None:
    run.step({"w": ones(2, 2), "b": None})
    run.step({"w": ones(2, 2)})
    tensors = run.state_dict()["tensors"]
    assert as_lists(run.params) == {"w": [[-2.0] * 2] * 2, "b": [0.0] * 2}
    assert (run.step_count, tensors["w"]["step"], tensors["b"]["step"]) == (2, 2, 0)


@pytest.mark.parametrize("policy", ["skip", "allow"])
def test_policies_for_gradients_that_are_not_finite(server: Server, policy: str) -> None:
    with server.create_run(f"policy-{policy}", {"x": zeros(2)}, SIGN, non_finite=policy) as run:
        receipt = run.step({"x": np.array([1.0, np.nan], np.float32)})
        assert np.isnan(receipt.gradient_norm)
        assert (receipt.step, receipt.skipped) == ((0, True) if policy == "skip" else (1, False))
        np.testing.assert_array_equal(run.params["x"], [0.0, 0.0] if policy == "skip" else [-1.0, np.nan])


# --- refused and broken steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        pytest.param({"v": ones(2, 2)}, ValueError, r"\['v'\].*has \['w', 'b'\]", id="unknown_name"),
        pytest.param({"w": ones(4)}, ValueError, r"'w' has shape \(4,\); expected \(2, 2\)", id="shape"),
        pytest.param({"w": ones(1, 2, 2)}, ValueError, "shape", id="a_block_given_to_step"),
        pytest.param({"b": 1.0}, ValueError, "'b' has shape", id="scalar_for_a_vector"),
        pytest.param({"b": np.ones(2, np.int32)}, TypeError, "int32", id="integers"),
        pytest.param({"b": np.ones(2, np.complex64)}, TypeError, "complex64", id="complex"),
        pytest.param({"b": "12"}, TypeError, "'b'", id="text"),
        pytest.param({"b": object()}, TypeError, "'b'", id="object"),
        pytest.param({"b": [[1.0], [1.0, 2.0]]}, TypeError, "'b'", id="ragged_list"),
    ],
)
def test_malformed_gradients_are_refused_before_anything_is_sent(
    run: Run, monkeypatch: pytest.MonkeyPatch, grads: dict[str, Any], error: type[Exception], message: str
) -> None:
    sent: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(TrainStream, "send", lambda self, messages: sent.append(messages))
        with pytest.raises(error, match=message):
            run.step(grads)
    assert sent == []
    assert not run.stale
    assert run.step({"w": ones(2, 2), "b": [1.0, 1.0]}).step == 1
    assert as_lists(run.params) == {"w": [[-1.0] * 2] * 2, "b": [-1.0] * 2}


@pytest.mark.parametrize("double_buffer", [False, True])
def test_a_step_refused_half_way_makes_a_mixture_or_keeps_the_old_copy(
    far_process: ServerProcess, double_buffer: bool
) -> None:
    """The NaN is in the last slice; 16 MB fit no buffer on the way, so the first answers have been read by then. The
    next step sends x alone: the right values of y can only come from a new read. (What comes through shared memory is
    checked whole before it is answered.)"""
    start = {"y": zeros(10), "x": zeros(4_000_000)}
    grads = {name: ones(*value.shape) for name, value in start.items()}
    name = f"mixture-{double_buffer}"
    with (
        connect(far_process.target) as far,
        far.create_run(name, start, SIGN, double_buffer=double_buffer, shared_memory=False) as run,
    ):
        run.step(grads)
        grads["x"][-1] = np.nan
        with pytest.raises(NonFiniteGradient, match=r"'x'.*nan at its element 3999999") as refused:
            run.step(grads)
        assert refused.value.applied is False
        assert run.params["y"][0] == (-1.0 if double_buffer else -2.0)
        assert run.params["x"][-1] == -1.0
        assert run.read()["y"].tolist() == [-1.0] * 10
        grads["x"][-1] = 1.0
        assert (run.stale, run.step({"x": grads["x"]}).step, run.stale) == (True, 2, False)
        assert (run.params["y"] == -1.0).all()
        assert (run.params["x"] == -2.0).all()


# --- finding a server --------------------------------------------------------------------------------------------


def free_target() -> str:
    """An address of this machine at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"localhost:{probe.getsockname()[1]}"


def is_running(pid: int) -> bool:
    """A process that has ended but that nobody has waited for yet does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_the_environment_names_the_server(server_process: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADWIRE_TARGET", server_process.target)
    monkeypatch.setattr(discovery_module, "DEFAULT_TARGET", free_target())
    with connect() as server:
        assert server.origin == f"{server_process.target}, from GRADWIRE_TARGET"
        assert server.embedded is None
        server.list_runs()


def test_a_server_at_the_default_address_is_used(
    server_process: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRADWIRE_TARGET", raising=False)
    monkeypatch.setattr(discovery_module, "DEFAULT_TARGET", server_process.target)
    with connect() as server:
        assert server.origin == f"{server_process.target}, which answers"
        assert server.embedded is None
        server.list_runs()


def test_else_a_server_is_embedded_and_ends_with_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADWIRE_TARGET", raising=False)
    monkeypatch.setattr(discovery_module, "DEFAULT_TARGET", free_target())
    with connect() as server:
        assert server.embedded is not None
        pid, directory = server.embedded.pid, Path(server.target.removeprefix("unix:")).parent
        assert server.origin == f"an embedded server, process {pid}, which ends with this one"
        assert is_running(pid)
        assert directory.stat().st_mode & 0o777 == 0o700, "for this user alone"
        run = server.create_run("embedded", {"x": zeros(1)}, SIGN)
        assert run.step({"x": ones(1)}).step == 1
    assert not is_running(pid)
    assert not directory.exists()


def test_where_nothing_serves_the_connection_is_lost() -> None:
    with pytest.raises(ConnectionLost):
        connect(free_target(), timeout_seconds=0.2)


_CLIENT = """
import sys, time
from gradwire.client import Adam, connect
server = connect("embedded")
run = server.create_run("r", {"x": [0.0]}, Adam())
run.step({"x": [1.0]})
print(server.embedded.pid, server.target, flush=True)
if sys.argv[1] == "killed":
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["exits", "killed"])
def test_an_embedded_server_is_gone_when_its_client_is(end: str) -> None:
    """Neither of the two clients closes anything."""
    environment = {key: value for key, value in os.environ.items() if key != "GRADWIRE_TARGET"}
    with child([sys.executable, "-c", _CLIENT, end], stderr=None, env=environment) as client:
        assert client.stdout is not None
        pid, target = client.stdout.readline().split()
        directory = Path(target.removeprefix("unix:")).parent
        if end == "killed":
            assert is_running(int(pid))
            client.kill()
        assert client.wait(30) == (-9 if end == "killed" else 0)
    wait_until(lambda: not is_running(int(pid)), "the server outlived its client")
    assert not directory.exists()
