"""A server in the test's own process, and two clients of it: one shares memory, one does not."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from gradwire.client import Run, Server, connect
from gradwire.client.training import attach_message
from tests.faults.conftest import hosted_in_order, proxy  # noqa: F401
from tests.faults.hosted import HostedServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if sys.platform != "linux":
        for item in items:
            if "shared_memory" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason="only Linux has memory files"))


@pytest.fixture
def hosted(caplog: pytest.LogCaptureFixture) -> Iterator[HostedServer]:
    """A server that gives stalled peers up after a second. At its end nothing may be left, or logged as an error."""
    caplog.set_level(logging.INFO, "gradwire")
    with hosted_in_order(caplog, stall_timeout_seconds=1.0) as server:
        yield server


@pytest.fixture
def no_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients ask for no lane: messages go through gRPC, and regions are looked for under /proc."""
    monkeypatch.setattr(attach_message, "AVAILABLE", False)


@pytest.fixture
def server(hosted: HostedServer) -> Iterator[Server]:
    """Its runs share memory."""
    with connect(hosted.target, shared_memory=True) as connection:
        yield connection


@pytest.fixture
def plain(hosted: HostedServer) -> Iterator[Server]:
    """Its runs do not."""
    with connect(hosted.target, shared_memory=False) as connection:
        yield connection


def shared_slices(run: Run) -> int:
    """Slices of gradients that have left through shared memory, on the present stream."""
    assert run._attachment.stream is not None
    assert run._attachment.stream.memory is not None
    return run._attachment.stream.memory._ring.placed


def taken_slices(run: Run) -> int:
    """Slices of parameters that have come through shared memory, on the present stream."""
    assert run._attachment.stream is not None
    assert run._attachment.stream.memory is not None
    return run._attachment.stream.memory._received
