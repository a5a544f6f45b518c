"""Whatever is asked through a closed connection raises ConnectionClosed, which says what was wrong and what helps."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from gradwire.client import Adam, ConnectionClosed, RetryPolicy, Run, Server, Shared, connect
from gradwire.client.transport.grpc_stream import StreamEnded
from gradwire.client.transport.link import Link
from gradwire.client.transport.retry import retrying
from gradwire.v1 import service_pb2
from tests.client.transport.every_call import ONES, RUN, SERVER, outcomes
from tests.faults.hosted import WAIT_SECONDS
from tests.serving import ServerProcess


@pytest.fixture(params=["remote", "embedded", "shared"])
def closed(request: pytest.FixtureRequest, server_process: ServerProcess) -> tuple[Server, Run, str]:
    """A connection that was closed, a run of it that has stepped, and how the error begins."""
    embedded = request.param == "embedded"
    workers = Shared() if request.param == "shared" else None
    with connect("embedded" if embedded else server_process.target) as server:
        run = server.create_run(f"closed-{request.param}", ONES, Adam(), on_existing="replace", workers=workers)
        run.step(ONES)
    said = (
        "this connection is closed, and its embedded server has ended with it, so neither "
        if embedded
        else f"this connection to {server_process.target} is closed, so neither "
    )
    return server, run, f"ConnectionClosed: {said}"


def test_every_call_says_that_the_connection_is_closed(closed: tuple[Server, Run, str]) -> None:
    server, run, beginning = closed
    calls = {name: call for name, call in RUN.items() if not (run.shared and name == "step_many")}  # never for those
    for said in (outcomes(server, SERVER), outcomes(run, calls)):
        for name, text in said.items():
            assert text.startswith(beginning), name
            assert text.endswith("or a new connection by gradwire.client.connect()"), name


def test_closing_goes_on_being_harmless(closed: tuple[Server, Run, str]) -> None:
    server, run, _ = closed
    run.discard_ahead()
    with run, server:
        pass
    assert run.step_count == 1
    assert run.params["x"].shape == (3,)


def test_values_that_still_wait_are_named_in_the_log_and_closing_raises_nothing(
    server_process: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(server_process.target) as server:
        run = server.create_run("closed-waiting", ONES, Adam())
        run.step(ONES)
    run._attachment.logged.add({"loss": [1.0]})  # by a thread that had asked whether it may before
    with caplog.at_level(logging.WARNING):
        run.close()
    assert "the last values of loss were not logged: this connection to " in caplog.text


def test_a_closed_run_attaches_again_while_its_connection_is_open(server: Server) -> None:
    run = server.create_run("closed-run", ONES, Adam())
    run.close()
    assert run.step(ONES).step == 1


def test_who_watches_while_the_connection_is_closed_is_told_so(server_process: ServerProcess) -> None:
    with connect(server_process.target) as server:
        run = server.create_run("closed-watched", ONES, Adam())
        run.step(ONES)
        updates = server.watch_series("closed-watched")
        assert next(updates).step == 1
        with ThreadPoolExecutor(1) as pool:
            watched = pool.submit(list, updates)
            server.close()
            with pytest.raises(ConnectionClosed):
                watched.result(WAIT_SECONDS)


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link("nowhere:1", grpc.insecure_channel("unix:/nonexistent"))
    yield made
    made.close()


def test_a_call_that_was_on_its_way_may_have_been_applied(link: Link) -> None:
    def call() -> None:
        link.close()
        raise StreamEnded("the channel is closed")

    with pytest.raises(ConnectionClosed) as raised:
        retrying(call, RetryPolicy(), link)
    assert raised.value.applied is None


def test_a_call_that_found_the_channel_closed_was_not_applied(link: Link) -> None:
    """Another thread has closed it after the call had begun to begin."""

    def call() -> service_pb2.ListRunsResponse:
        stub = link.stub
        link.close()
        return stub.ListRuns(service_pb2.ListRunsRequest())

    with pytest.raises(ConnectionClosed) as raised:
        retrying(call, RetryPolicy(), link)
    assert raised.value.applied is False
