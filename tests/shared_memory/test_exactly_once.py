"""Promise: a step through shared memory is applied exactly once, wherever the connection breaks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from gradwire.client import AMSGrad, Run, Server, connect
from tests.faults.bare import fresh_name
from tests.faults.hosted import HostedServer, eventually
from tests.faults.proxy import Direction, Proxy
from tests.shared_memory.conftest import shared_slices, taken_slices

pytestmark = pytest.mark.usefixtures("no_lanes")

SIZE = 5_000_000
"""20 MB: five slices each way."""

PARAMS = {"x": np.random.default_rng(0).standard_normal(SIZE, np.float32)}
GRADIENTS = [{"x": np.random.default_rng(seed).standard_normal(SIZE, np.float32)} for seed in (1, 2, 3)]


@pytest.fixture
def server(proxy: Proxy) -> Iterator[Server]:
    """Through the proxy go only messages about the values; the values go past it."""
    with connect(proxy.target, shared_memory=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    """The parameters after each of the steps, from a run that nothing happens to."""
    after = []
    with HostedServer() as server, connect(server.target) as connection:
        run = connection.create_run("undisturbed", PARAMS, AMSGrad(lr=0.01))
        for gradients in GRADIENTS:
            run.step(gradients)
            after.append(run.params["x"].copy())
    return after


def bytes_of_a_step(run: Run, proxy: Proxy) -> dict[Direction, int]:
    """What passes the proxy in the second step of a stream; the first one carries what is said once."""
    run.step(GRADIENTS[0])
    before = dict(proxy.passed)
    run.step(GRADIENTS[0])
    return {direction: proxy.passed[direction] - before[direction] for direction in Direction}


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("cuts", [range(9)])
@pytest.mark.parametrize("in_place", [False, True], ids=["copied", "in place"])
def test_a_step_that_is_cut_anywhere_is_made_once(
    server: Server, proxy: Proxy, expected: list[np.ndarray], direction: Direction, cuts: range, in_place: bool
) -> None:
    """Cut ever later in the bytes that a step takes; each time it is the second step of a new run."""
    with server.create_run(fresh_name("measured"), PARAMS, AMSGrad(lr=0.01)) as measured:
        size_bytes = bytes_of_a_step(measured, proxy)[direction]
        assert shared_slices(measured) == taken_slices(measured) == 10
    assert size_bytes < 3_000, "the values must have gone past the proxy"
    for cut in cuts:
        run = server.create_run(fresh_name("cut"), PARAMS, AMSGrad(lr=0.01), shared_params=in_place)
        run.step(GRADIENTS[0])
        # Now and then a step says a little less.
        proxy.cut_after(direction, cut * size_bytes // (len(cuts) + 2) + 1)
        receipt = run.step(GRADIENTS[1])
        assert proxy.was_cut.wait(10)
        assert receipt.step == 2
        assert run.params["x"].tobytes() == expected[1].tobytes()
        assert run.step(GRADIENTS[2]).step == 3
        assert run.shares_memory
        assert run.params["x"].tobytes() == run.read()["x"].tobytes() == expected[2].tobytes()
        run.close()
        server.delete_run(run.name)


def test_gradients_that_left_ahead_of_a_broken_step(server: Server, proxy: Proxy, expected: list[np.ndarray]) -> None:
    run = server.create_run(fresh_name("ahead"), PARAMS, AMSGrad(lr=0.01))
    for index, gradients in enumerate(GRADIENTS):
        assert run.send_ahead({"x": lambda gradients=gradients: gradients["x"][None]})  # type: ignore[misc]
        eventually(lambda: shared_slices(run) >= 5, "the gradients have left")
        if index == 1:
            proxy.cut()
        assert run.step(gradients, ahead=["x"]).step == index + 1
        assert run.params["x"].tobytes() == expected[index].tobytes()


def test_a_worker_that_is_fenced_by_itself_goes_on(server: Server, expected: list[np.ndarray]) -> None:
    """Its old region ends with the old stream; what it still holds there hurts nobody."""
    older = server.create_run(fresh_name("fenced"), PARAMS, AMSGrad(lr=0.01), worker_id="w")
    older.step(GRADIENTS[0])
    newer = server.attach(older.name, worker_id="w")
    newer.step(GRADIENTS[1])
    assert newer.shares_memory
    assert newer.params["x"].tobytes() == expected[1].tobytes()
    older.params["x"][:] = 0
    newer.step(GRADIENTS[2])
    assert newer.params["x"].tobytes() == expected[2].tobytes()


def test_a_client_that_is_gone_in_the_middle_leaves_nothing(hosted: HostedServer, server: Server, proxy: Proxy) -> None:
    run = server.create_run(fresh_name("gone"), PARAMS, AMSGrad(lr=0.01))
    run.step(GRADIENTS[0])
    used = hosted.used_bytes
    assert run.send_ahead({"x": lambda: GRADIENTS[1]["x"][None]})
    proxy.refuse()
    eventually(lambda: hosted.handlers() == 0, "the stream has ended")
    eventually(lambda: hosted.used_bytes < used - 2 * SIZE * 4, "the region is free")
    proxy.welcome()
    assert run.step(GRADIENTS[1]).step == 2
