"""What strangers can hold of a server, and that it serves those whom it knows meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from gradwire.v1 import service_pb2
from tests.contract.bare import BareClient, Refusal, group, refused
from tests.faults.hosted import WAIT_SECONDS, HostedServer, eventually
from tests.integration.access import AccessFile, secret_of

MAX_CONNECTIONS = 8


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[HostedServer]:
    access = AccessFile(tmp_path / "access.toml")
    access.add("owner", "lab", "train")
    with HostedServer(access=str(access.path), max_connections=MAX_CONNECTIONS) as server:
        yield server


@pytest.fixture
def owner(hosted: HostedServer) -> Iterator[BareClient]:
    with BareClient(hosted.target, secret_of("owner")) as client:
        client.create("x", [group(w=[2])], [0.0, 0.0])
        yield client


@contextmanager
def silent(target: str, count: int) -> Iterator[list[socket.socket]]:
    """Connections that say nothing."""
    host, _, port = target.rpartition(":")
    with ExitStack() as opened:
        yield [opened.enter_context(socket.create_connection((host, int(port)), WAIT_SECONDS)) for _ in range(count)]


def ended(connection: socket.socket) -> bool:
    """Whether the server has closed it; what it has said before does not matter."""
    connection.settimeout(WAIT_SECONDS)
    try:
        while connection.recv(65_536):
            pass
    except ConnectionError:
        pass
    return True


def test_silent_connections_beyond_the_bound_are_closed(hosted: HostedServer, owner: BareClient) -> None:
    with owner.attach("x") as stream:
        with silent(hosted.target, 5 * MAX_CONNECTIONS) as connections:
            assert all(ended(connection) for connection in connections[MAX_CONNECTIONS:])
            for sequence in range(1, 6):
                stream.step(sequence, [1.0, 1.0])
        with BareClient(hosted.target, secret_of("owner")) as late:
            eventually(lambda: reaches(late), "there is room again")


def reaches(client: BareClient) -> bool:
    try:
        return bool(client.get("x").step)
    except Refusal:
        return False


def test_a_mebibyte_of_metadata_reaches_nobody(hosted: HostedServer, owner: BareClient) -> None:
    with BareClient(hosted.target) as stranger:
        stranger.metadata = (("authorization", "Bearer " + "x" * 2**20),)
        with pytest.raises(Refusal) as caught:
            stranger.call("WhoAmI", service_pb2.WhoAmIRequest())
        assert caught.value.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
    assert owner.get("x").step == 0


def test_headers_without_a_message_hold_nothing(hosted: HostedServer, owner: BareClient) -> None:
    with grpc.insecure_channel(hosted.target) as channel:
        call = channel.stream_unary("/gradwire.v1.OptimizerService/GetRun", lambda data: data, lambda data: data)
        with pytest.raises(grpc.RpcError) as caught:
            call(iter(()), timeout=WAIT_SECONDS)
        code = getattr(caught.value, "code", lambda: None)()
        assert code is grpc.StatusCode.UNAUTHENTICATED
    assert owner.get("x").step == 0


@pytest.mark.parametrize("name", ["a\nb", "a\0b", "\x1b[31mred", "a\u202eb", "é", "." * 3, "a" * 129])
def test_names_that_could_mean_something_elsewhere_are_refused(owner: BareClient, name: str) -> None:
    error = refused("INVALID_SPEC", lambda: owner.create(name, [group(w=[2])], [0.0, 0.0]))
    assert "\n" not in str(error)
    assert "\x1b" not in str(error)
