"""Promise: what goes by a lane is what goes through gRPC, bit for bit, and refused for the same reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, Run, Server, connect
from tests.faults.bare import fresh_name
from tests.faults.hosted import HostedServer
from tests.integration.watching import Scraped
from tests.lanes.conftest import has_lane

SHAPES = {"a": (3,), "b": (50, 300), "empty": (0, 2), "c": (130_000,)}
"""A message of one packet, of several, and one whose data lies in the region."""


def values(seed: int, shapes: dict[str, tuple[int, ...]], steps: int | None = None) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    lead = () if steps is None else (steps,)
    return {name: random.standard_normal((*lead, *shape), np.float32) for name, shape in shapes.items()}


def pair(server: Server, plain: Server, shapes: dict[str, tuple[int, ...]], **options: Any) -> tuple[Run, Run]:
    """The same run twice: once by a lane, once through gRPC."""
    runs = [
        one.create_run(fresh_name("same"), values(0, shapes), AMSGrad(lr=0.01), **options) for one in (server, plain)
    ]
    assert [has_lane(run) for run in runs] == [True, False]
    return runs[0], runs[1]


def check(ours: Run, theirs: Run) -> None:
    for name in ours.params:
        assert ours.params[name].tobytes() == theirs.params[name].tobytes(), name
    assert ours.last_receipt == theirs.last_receipt
    assert has_lane(ours)
    assert ours.refreshes == theirs.refreshes == 0
    ours.close()
    theirs.close()


@pytest.mark.parametrize("names", [["a"], ["a", "b", "empty"], list(SHAPES)])
@pytest.mark.parametrize("encoding", [None, "float64", "bfloat16", "int8"])
def test_blocks_of_every_kind(server: Server, plain: Server, names: list[str], encoding: str | None) -> None:
    shapes = {name: SHAPES[name] for name in names}
    ours, theirs = pair(server, plain, shapes, gradient_encoding=encoding, parameter_encoding=encoding)
    for seed, (steps, returns) in enumerate([(1, "last"), (5, "last"), (5, "none"), (5, "trajectory"), (1, "last")]):
        if encoding == "int8" and returns == "trajectory":
            continue
        grads = values(seed + 1, shapes, steps)
        answers = [run.step_many(grads, returns=returns, lr=0.01 / (seed + 1)) for run in (ours, theirs)]
        assert [None if one is None else {name: one[name].tobytes() for name in one} for one in answers[:1]] == [
            None if one is None else {name: one[name].tobytes() for name in one} for one in answers[1:]
        ]
    del grads["a"]
    for run in (ours, theirs):
        run.step({name: grad[0] for name, grad in grads.items()})
    check(ours, theirs)


def test_a_long_block_of_one_element(server: Server, plain: Server) -> None:
    """It needs no region, and dozens of packets each way."""
    ours, theirs = pair(server, plain, {"a": (1,)})
    grads = values(1, {"a": (1,)}, 500_000)
    trajectories = [run.step_many(grads, returns="trajectory") for run in (ours, theirs)]
    assert trajectories[0]["a"].tobytes() == trajectories[1]["a"].tobytes()
    check(ours, theirs)


def test_gradients_that_leave_before_the_step(server: Server, plain: Server) -> None:
    """From the sending thread, while the caller still computes."""
    ours, theirs = pair(server, plain, SHAPES)
    for seed in range(3):
        grads = values(seed + 1, SHAPES)
        for run in (ours, theirs):
            assert run.send_ahead({"b": lambda grads=grads: grads["b"].reshape(1, -1)})  # type: ignore[misc]
            run.step(grads, ahead=["b"])
    check(ours, theirs)


@pytest.fixture
def watched() -> Iterator[HostedServer]:
    with HostedServer(http="127.0.0.1:0") as hosted:
        yield hosted


def test_its_bytes_are_counted_apart(watched: HostedServer) -> None:
    with connect(watched.target) as server:
        run = server.create_run("counted", values(0, {"a": (3,)}), AMSGrad())
        for _ in range(4):
            run.step(values(1, {"a": (3,)}))
        run.step_many(values(1, {"a": (3,)}, 2), returns="trajectory")
    found = Scraped(watched)
    for direction, rows in {"received": 6, "sent": 6}.items():
        counted = found("gradwire_bytes_total", direction=direction, encoding="float32", path="lane")
        assert counted == rows * 12
        assert found("gradwire_bytes_total", direction=direction, encoding="float32", path="stream") == 0
    assert found("gradwire_blocks_total", result="applied") == 5
    assert found("gradwire_steps_total") == 6
