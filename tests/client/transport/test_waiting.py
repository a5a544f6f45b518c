"""Until when `connect` waits, and what it says when it gives up."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gradwire.client import ConnectionLost, connect
from gradwire.client.transport import channels, discovery, silence
from gradwire.wire.service import SERVICE_NAME
from tests.faults.hosted import HostedServer, InBackground, eventually

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedServer]:
    with HostedServer() as server:
        yield server


@pytest.fixture(autouse=True)
def no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADWIRE_TARGET", raising=False)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time-out of each look at whether a server is there."""
    seen: list[float] = []
    look = channels._look

    def counted(channel: grpc.Channel, timeout_seconds: float) -> Any:
        found = look(channel, timeout_seconds)
        seen.append(timeout_seconds)
        return found

    monkeypatch.setattr(channels, "_look", counted)
    return seen


@contextmanager
def free_port() -> Iterator[int]:
    """That nobody else is given meanwhile; whoever connects to it is refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextmanager
def another_server(service: str = "") -> Iterator[tuple[str, health.HealthServicer]]:
    """A gRPC server that knows health, of ``service`` too."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set(service, NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("timeout_seconds", [60, math.inf])
def test_a_server_that_does_not_listen_yet_is_waited_for(
    tmp_path: Path, looks: list[float], timeout_seconds: float
) -> None:
    target = f"unix:{tmp_path}/socket"
    with InBackground(lambda: connect(target, timeout_seconds=timeout_seconds)) as background:
        eventually(lambda: len(looks) >= 3, "it has been looked for three times")
        with HostedServer(listen=(target,)), background.result() as server:
            assert server.list_runs() == []
    assert all(0 < seconds <= 5 for seconds in looks), "a number that gRPC understands"


def test_a_name_that_is_not_known_yet_is_asked_for_anew(
    hosted: HostedServer, looks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC alone would wait up to two minutes before it asks again. A container is known once it has started."""
    resolver = ["127.0.0.1:1"]
    made = channels.channel_to
    monkeypatch.setattr(channels, "channel_to", lambda target, tls: made(resolver[0], tls))
    with InBackground(lambda: connect("server.invalid:50051", timeout_seconds=60)) as background:
        eventually(lambda: len(looks) >= 3, "it has been looked for three times")
        resolver[0] = hosted.target
        background.result().close()


def test_a_server_that_is_starting_is_waited_for(looks: list[float]) -> None:
    with (
        another_server(SERVICE_NAME) as (target, servicer),
        InBackground(lambda: connect(target, timeout_seconds=60)) as background,
    ):
        eventually(lambda: len(looks) >= 3, "it has been looked at three times")
        servicer.set(SERVICE_NAME, SERVING)
        background.result().close()


def test_a_server_that_is_starting_at_the_default_address_is_taken(
    looks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with another_server(SERVICE_NAME) as (target, servicer):
        monkeypatch.setattr(discovery, "DEFAULT_TARGET", target)
        with InBackground(lambda: connect(timeout_seconds=60)) as background:
            eventually(lambda: len(looks) >= 3, "it has been looked at three times")
            servicer.set(SERVICE_NAME, SERVING)
            with background.result() as server:
                assert server.embedded is None
                assert server.origin == f"{target}, which answers"


def test_who_gives_up_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with free_port() as port:
        with pytest.raises(ConnectionLost) as caught:
            connect(f"127.0.0.1:{port}", timeout_seconds=0.2)
        assert str(caught.value) == (
            f"no gradwire server at 127.0.0.1:{port} after 0.2 s: connection refused; start one with `gradwire serve`"
        )
        assert caught.value.applied is False


def test_who_gives_up_on_a_server_that_is_starting_says_so() -> None:
    with another_server(SERVICE_NAME) as (target, _), pytest.raises(ConnectionLost) as caught:
        connect(target, timeout_seconds=0)
    assert str(caught.value) == f"{target} is not serving after 0 s: it is starting or about to stop"


def test_another_grpc_server_is_not_waited_for() -> None:
    with another_server() as (target, _), pytest.raises(ConnectionLost) as caught:
        connect(target, timeout_seconds=math.inf)
    assert str(caught.value).startswith(f"no gradwire server at {target}: another gRPC server answers; ")


def test_something_else_that_listens_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        target = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ConnectionLost, match="something listens there that does not answer as one"):
            connect(target, timeout_seconds=0.2)
        monkeypatch.setattr(channels, "PROBE_TIMEOUT_SECONDS", 0.2)
        assert not channels.answers(target)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "this name is not known"),
        (TimeoutError("timed out"), "nothing answers"),
        (OSError(113, "No route to host"), "no route to host"),
    ],
)
def test_reasons_in_the_system_s_words(monkeypatch: pytest.MonkeyPatch, error: OSError, said: str) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert silence.why_nobody_answers("server:50051") == said


def test_reasons_of_targets_that_are_no_host_and_port(tmp_path: Path) -> None:
    assert silence.why_nobody_answers(f"unix:{tmp_path}/none") == "no such file or directory"
    assert silence.why_nobody_answers(f"unix://{tmp_path}/none") == "no such file or directory"


@pytest.mark.parametrize("host", ["LOCALHOST", "0.0.0.0"])
def test_a_proxy_is_not_asked_for_this_host(hosted: HostedServer, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    with free_port() as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        connect(f"{host}:{hosted.target.rpartition(':')[2]}", timeout_seconds=5).close()


def test_a_proxy_that_stands_before_another_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    with free_port() as port:
        monkeypatch.setenv("grpc_proxy", f"http://me:secret@127.0.0.1:{port}")
        with pytest.raises(ConnectionLost) as caught:
            connect("192.0.2.1:50051", timeout_seconds=0)
    assert f"through the proxy that grpc_proxy names, http://me:***@127.0.0.1:{port} " in str(caught.value)
    assert "no_proxy=192.0.2.1" in str(caught.value)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(math.nan, ValueError), (-1, ValueError), ("5", TypeError), (None, TypeError), (True, TypeError)],
)
def test_time_outs_that_are_none_are_refused_by_name(timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^timeout_seconds is .*; expected "):
        connect("127.0.0.1:1", timeout_seconds=timeout)


@pytest.mark.parametrize(
    ("target", "error"),
    [("", ValueError), ("localhost", ValueError), (":50051", ValueError), ("a:b", ValueError), (50051, TypeError)],
)
def test_targets_that_are_none_are_refused_by_name(target: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^target is .*; expected 'HOST:PORT', "):
        connect(target)


@pytest.mark.parametrize(("target", "data_dir"), [(None, "runs"), ("127.0.0.1:1", "runs"), ("embedded", "")])
def test_a_data_directory_is_for_an_embedded_server(target: str | None, data_dir: str) -> None:
    with pytest.raises(ValueError, match=r"^data_dir is .*; expected a directory, and target='embedded'"):
        connect(target, data_dir=data_dir)
