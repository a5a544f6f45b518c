"""Servers that faults can be tried on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from gradwire.client import Server, connect
from gradwire.v1 import service_pb2_grpc
from tests.faults.bare import Stub, channel_to
from tests.faults.gated import GatedDevice
from tests.faults.hosted import HostedServer, eventually
from tests.faults.proxy import Proxy
from tests.serving import ServerProcess


@pytest.fixture(autouse=True)
def messages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients share no memory with their servers: proxies count what passes, and gates wait for what messages do.

    What can happen to shared memory is in ``tests/shared_memory``.
    """
    monkeypatch.setenv("GRADWIRE_SHARED_MEMORY", "0")


@pytest.fixture(scope="package")
def process() -> Iterator[ServerProcess]:
    """A server process with default settings that no test harms; give runs names of your own.

    It computes blocks while they arrive: of those that are computed when they are whole fewer things can go wrong.
    """
    with ServerProcess(module="tests.far_server") as server:
        yield server


@pytest.fixture
def connect_bare() -> Iterator[Callable[[str], Stub]]:
    """Makes stubs with a connection of their own, closed after the test."""
    channels: list[grpc.Channel] = []

    def connect(target: str) -> Stub:
        channels.append(channel_to(target))
        return service_pb2_grpc.OptimizerServiceStub(channels[-1])

    yield connect
    for channel in channels:
        channel.close()


@pytest.fixture
def stub(process: ServerProcess, connect_bare: Callable[[str], Stub]) -> Stub:
    """The bare stub of the shared process."""
    return connect_bare(process.target)


@contextmanager
def hosted_in_order(
    caplog: pytest.LogCaptureFixture, device: GatedDevice | None = None, **settings: Any
) -> Iterator[HostedServer]:
    """A server in this process, which at its end has nothing left, and has logged no error."""
    with HostedServer(device, **settings) as server:
        yield server
        check_nothing_is_left(server)
    errors = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert not errors, [record.getMessage() for record in errors]


@pytest.fixture
def device() -> GatedDevice:
    """The device of `hosted`."""
    return GatedDevice()


@pytest.fixture
def hosted(device: GatedDevice, caplog: pytest.LogCaptureFixture) -> Iterator[HostedServer]:
    """A server in this process; stalled peers are given up after two seconds.

    At its end no memory may be left over, and no fault of a client may have been logged as an error of the server's.
    """
    with hosted_in_order(caplog, device, stall_timeout_seconds=2.0) as server:
        yield server


@pytest.fixture
def hosted_stub(hosted: HostedServer, connect_bare: Callable[[str], Stub]) -> Stub:
    """The bare stub of `hosted`."""
    return connect_bare(hosted.target)


@pytest.fixture
def proxy(hosted: HostedServer) -> Iterator[Proxy]:
    with Proxy(hosted.target) as between:
        yield between


@pytest.fixture
def server(proxy: Proxy) -> Iterator[Server]:
    """A client that reaches `hosted` through the proxy."""
    with connect(proxy.target) as connection:
        yield connection


@pytest.fixture
def direct(hosted: HostedServer) -> Iterator[Server]:
    """A client that nothing gets in the way of."""
    with connect(hosted.target) as connection:
        yield connection


def check_nothing_is_left(server: HostedServer) -> None:
    """Deletes the runs; then no memory may be counted any more."""
    for name in server.call(lambda: [run.spec.name for run in server.registry.runs()]):
        server.delete(name)
    eventually(lambda: server.used_bytes == 0, f"{server.used_bytes} bytes given back")
