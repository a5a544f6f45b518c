"""A run object that comes back to its run, and what is checked before anything is created."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradwire.client import Adam, AMSGrad, Fenced, Run, RunNotFound, Server, WorkerConflict

ONES = np.ones(3, np.float32)


def make(server: Server, name: str, **options: Any) -> Run:
    return server.create_run(name, {"w": ONES, "b": ONES}, Adam(lr=0.1), **options)


def close(run: Run) -> None:
    run.close()


def reload(run: Run) -> None:
    run.load_state_dict(run.state_dict())


@pytest.mark.parametrize("leave", [close, reload], ids=["close", "load_state_dict"])
def test_what_another_worker_did_meanwhile_is_read_anew(server: Server, leave: Callable[[Run], None]) -> None:
    """Also for a tensor that the next step leaves alone, in the parameters and in a trajectory."""
    run = make(server, f"reattached-{leave.__name__}")
    run.step({"w": ONES, "b": ONES})
    leave(run)
    with server.attach(run.name) as other:
        other.step({"b": ONES})
        expected = other.params["b"].copy()
    rows = run.step_many({"w": np.stack([ONES, ONES])}, returns="trajectory")
    assert np.array_equal(run.params["b"], expected)
    assert np.array_equal(rows["b"], np.stack([expected, expected]))
    assert {name: value.tolist() for name, value in run.read().items()} == {
        name: value.tolist() for name, value in run.params.items()
    }


def test_coming_back_alone_reads_nothing_anew(server: Server) -> None:
    run = make(server, "reattached-alone")
    run.step({"w": ONES})
    run.close()
    run.params["b"][:] = 7  # would be overwritten by a refresh
    run.step({"w": ONES})
    assert run.params["b"].tolist() == [7, 7, 7]


def test_a_fenced_step_was_not_applied_and_two_clients_of_one_id_are_a_conflict(server: Server) -> None:
    run = make(server, "reattached-conflict", worker_id="me")
    run.step({"w": ONES})
    other = server.attach(run.name, worker_id="me")
    other.step({"w": ONES})
    with pytest.raises(Fenced) as caught:
        run.step({"w": ONES})
    assert caught.value.applied is False
    with pytest.raises(WorkerConflict):
        run.step({"w": ONES})


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"gradient_encoding": "int7"}, ValueError),
        ({"parameter_encoding": "int7"}, ValueError),
        ({"worker_id": 5}, TypeError),
        ({"worker_id": "x" * 129}, ValueError),
        ({"colour": "red"}, TypeError),
    ],
)
def test_a_bad_option_creates_and_replaces_nothing(
    server: Server, option: dict[str, Any], error: type[Exception]
) -> None:
    with make(server, "reattached-kept", on_existing="replace") as run:
        run.step({"w": ONES})
    with pytest.raises(error):
        make(server, "reattached-kept", on_existing="replace", **option)
    with server.attach("reattached-kept") as kept:
        assert kept.step_count == 1
    with pytest.raises(error):
        make(server, "reattached-never", **option)
    with pytest.raises(RunNotFound):
        server.attach("reattached-never")


@pytest.mark.parametrize(
    ("params", "optimizer", "message"),
    [
        ([{"w": ONES}], Adam(), "list of ParamGroup"),
        ({"w": ONES}, Adam, "expected a preset"),
        ({"w": ONES}, None, "expected a preset"),
        ({5: ONES}, Adam(), "expected a string"),
    ],
)
def test_malformed_arguments_are_named(server: Server, params: Any, optimizer: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        server.create_run("reattached-malformed", params, optimizer)


def test_a_closed_run_is_forgotten_by_its_connection_until_it_comes_back(server: Server) -> None:
    run = make(server, "reattached-forgotten")
    assert run._attachment in server._attached
    run.close()
    assert run._attachment not in server._attached
    run.step({"w": ONES})
    assert run._attachment in server._attached


def test_a_state_that_cannot_be_is_refused(server: Server) -> None:
    run = server.create_run("reattached-state", {"w": ONES}, AMSGrad())
    run.step({"w": ONES})
    state = run.state_dict()
    with pytest.raises(Exception, match="the run at 1"):
        run.load_state_dict({**state, "tensors": {"w": {**state["tensors"]["w"], "step": 99}}})
    with pytest.raises(TypeError):
        run.load_state_dict({**state, "step": 2.7})
    with pytest.raises(ValueError, match="expected what"):
        run.load_state_dict({"step": 1})
    assert run.state_dict()["step"] == 1
