"""A forked process has copies of its parent's connections and runs: it is told so, and harms nobody.

gRPC's threads are not there, and a lock may be held by a thread that is not: whoever used a copy would wait for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gradwire.client import Adam, Run, Server, connect
from tests.client.transport.every_call import ONES, RUN, SERVER, outcomes
from tests.faults.hosted import WAIT_SECONDS

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform"),
    # Python 3.12 and later warn of any fork of a process with threads.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with connect("embedded") as connection:
        yield connection


@pytest.fixture
def run(server: Server) -> Iterator[Run]:
    with server.create_run("forks", ONES, Adam(), on_existing="replace") as made:
        yield made


def in_fork(work: Callable[[], object]) -> Any:
    """What ``work()`` returns in a forked process, which must come to its end."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(work()))
    process.start()
    try:
        process.join(WAIT_SECONDS)
        assert process.exitcode == 0, "it waits for ever" if process.is_alive() else "it has failed"
        return receiver.recv()
    finally:
        process.kill()
        process.join()


def test_a_run_is_not_the_forked_process_s_own(run: Run) -> None:
    """Also where another thread held its lock when the process was forked."""
    run.step(ONES)
    locked, release = threading.Event(), threading.Event()

    def hold() -> None:
        with run._lock:
            locked.set()
            release.wait(WAIT_SECONDS)

    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait(WAIT_SECONDS)
    try:
        said = in_fork(lambda: outcomes(run, RUN))
    finally:
        release.set()
        holder.join()
    assert set(said) == set(RUN)
    for name, text in said.items():
        assert text.startswith(f"ForkedProcess: this run belongs to process {os.getpid()}, and this is process "), name
        assert "forked from it" in text
    assert run.step(ONES).step == 2


def test_a_connection_is_not_the_forked_process_s_own(server: Server, run: Run) -> None:
    said = in_fork(lambda: outcomes(server, SERVER))
    assert set(said) == set(SERVER)
    for name, text in said.items():
        assert text.startswith(f"ForkedProcess: this connection belongs to process {os.getpid()}, "), name
    assert [summary.name for summary in server.list_runs()] == ["forks"]


def test_what_a_forked_process_closes_stays_open_in_its_parent(server: Server, run: Run) -> None:
    assert server.embedded is not None
    directory = Path(server.target.removeprefix("unix:")).parent

    def close() -> str:
        assert server.embedded is not None
        run.discard_ahead()
        run.close()
        with run, server:
            pass
        server.embedded.close()
        return "closed"

    assert in_fork(close) == "closed"
    assert directory.is_dir()
    assert server.embedded._process.poll() is None
    assert run.step(ONES).step == 1


def test_a_forked_process_may_have_a_connection_of_its_own(server: Server, run: Run) -> None:
    def train() -> int:
        with connect(server.target) as own, own.create_run("own", ONES, Adam()) as other:
            return other.step(ONES).step

    assert in_fork(train) == 1
    assert server.delete_run("own") == 1
