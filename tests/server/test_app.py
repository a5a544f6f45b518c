"""The server process: where it listens, what health says, reflection behind a flag."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gradwire.client import AMSGrad, connect
from gradwire.server.app import Server, serve
from gradwire.server.config import ConfigError, ServerConfig
from gradwire.server.runs.registry import Registry
from tests.faults.hosted import HostedServer
from tests.serving import ServerProcess

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NAMES = ["", "gradwire.v1.OptimizerService"]


@pytest.fixture
def hosted() -> Iterator[HostedServer]:
    with HostedServer() as server:
        yield server


@pytest.mark.parametrize("service", NAMES)
def test_health_knows_the_server_and_the_service_by_name(hosted: HostedServer, service: str) -> None:
    with grpc.insecure_channel(hosted.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="gradwire.v2.OptimizerService"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", NAMES)
def test_health_turns_not_serving_before_the_server_stops(hosted: HostedServer, service: str) -> None:
    """A load balancer that watches hears of the drain."""
    with grpc.insecure_channel(hosted.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=20)
        assert next(watch).status == SERVING
        asyncio.run_coroutine_threadsafe(hosted.server.drain(), hosted.loop)
        assert next(watch).status == NOT_SERVING


def test_server_is_not_serving_until_its_kernels_are_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    async def start() -> None:
        server = Server(ServerConfig(listen=("127.0.0.1:0",), device="cpu"))
        loop = asyncio.get_running_loop()

        async def check() -> int:
            async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
                return int(answer.status)

        def warm_up() -> None:
            seen.append(asyncio.run_coroutine_threadsafe(check(), loop).result(20))

        monkeypatch.setattr(server, "_warm_up", warm_up)
        await server.start()
        seen.append(await check())
        await server.drain()

    asyncio.run(start())
    assert seen == [NOT_SERVING, SERVING]


@pytest.mark.parametrize("phase", ["warm_up", "recover"])
def test_who_is_stopped_while_it_starts_ends_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, phase: str
) -> None:
    """What it does at that moment it ends; then it neither serves nor says so, and what it had kept is there."""
    config = ServerConfig(listen=("127.0.0.1:0",), device="cpu", data_dir=str(tmp_path))
    with (
        HostedServer(data_dir=str(tmp_path)) as hosted,
        connect(hosted.target) as connection,
        connection.create_run("x", {"w": [1.0]}, AMSGrad(), durability="JOURNAL") as run,
    ):
        run.step({"w": [1.0]})
        digest = run.digest()
    owner, name = (Server, "_warm_up") if phase == "warm_up" else (Registry, "recover")
    original = getattr(owner, name)

    def stopped_meanwhile(self: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        original(self)

    ready: list[Server] = []
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopped_meanwhile)
        asyncio.run(asyncio.wait_for(serve(config, ready.append), 60))
    assert not ready
    with (
        HostedServer(data_dir=str(tmp_path)) as hosted,
        connect(hosted.target) as connection,
        connection.attach("x") as run,
    ):
        assert (run.step_count, run.digest()) == (1, digest)


def services(target: str) -> set[str]:
    """What reflection lists."""
    with grpc.insecure_channel(target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
        return {service.name for service in answer.list_services_response.service}


def test_reflection_is_behind_a_flag(hosted: HostedServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        services(hosted.target)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with HostedServer(reflection=True) as open_server:
        assert {"gradwire.v1.OptimizerService", "grpc.health.v1.Health"} <= services(open_server.target)


def test_listens_on_several_addresses_at_once(tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/socket"
    with HostedServer(listen=("127.0.0.1:0", socket)) as server:
        first, second = server.server.addresses
        assert second == socket
        assert first.startswith("127.0.0.1:")
        assert not first.endswith(":0"), "the port that was really taken"
        with connect(first) as one, connect(second) as other:
            one.create_run("x", {"w": [1.0]}, AMSGrad()).close()
            assert [run.name for run in other.list_runs()] == ["x"]


def test_a_port_in_use_is_an_error_and_not_shared(hosted: HostedServer) -> None:
    """With SO_REUSEPORT a second server would take every other connection."""

    async def start() -> None:
        server = Server(ServerConfig(listen=(hosted.target,), device="cpu"))
        try:
            with pytest.raises(ConfigError, match=f"cannot listen on {hosted.target}"):
                await server.start()
        finally:
            await server.drain()

    asyncio.run(start())


@pytest.mark.parametrize("taken", ["127.0.0.1", "127.0.0.2"])
def test_a_name_is_listened_on_with_all_its_addresses_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    """gRPC takes what is free, and the server that has the rest would get some of the clients."""
    found = socket.getaddrinfo
    names = (
        "127.0.0.1",
        "127.0.0.2",
        "192.0.2.1",
    )  # the last one is no address of this machine, and counts for nothing

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> list[Any]:
        return [
            one for name in (names if host == "localhost" else [host]) for one in found(name, *arguments, **options)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def start(port: int) -> None:
        server = Server(ServerConfig(listen=(f"localhost:{port}",), device="cpu"))
        monkeypatch.setattr(server, "_warm_up", lambda: None)
        try:
            await server.start()
            assert server.addresses == [f"localhost:{port}"]
            for name in names[:2]:
                socket.create_connection((name, port)).close()
        finally:
            await server.drain()

    with socket.create_server((taken, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"cannot listen on localhost:{port}: {taken} port {port}: Address already"
        ):
            asyncio.run(start(port))
    asyncio.run(start(port))


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_is_closed_drains_the_server(monkeypatch: pytest.MonkeyPatch, ignored: bool) -> None:
    """Unless ``nohup`` has said that it is to go on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    monkeypatch.setattr(Server, "_warm_up", lambda server: None)
    hung_up: list[bool] = []

    async def run() -> None:
        def ready(server: Server) -> None:
            os.kill(os.getpid(), signal.SIGHUP)
            asyncio.get_running_loop().call_later(0.1, look, server)

        def look(server: Server) -> None:
            hung_up.append(server.draining)
            os.kill(os.getpid(), signal.SIGTERM)

        config = ServerConfig(listen=("127.0.0.1:0",), device="cpu")
        await asyncio.wait_for(serve(config, ready), 60)

    try:
        asyncio.run(run())
    finally:
        signal.signal(signal.SIGHUP, before)
    assert hung_up == ([False] if ignored else [])


def test_a_unix_socket_that_is_served_is_not_taken_over(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    with ServerProcess(listen=address) as first:
        with pytest.raises(RuntimeError, match="another server does"):
            ServerProcess(listen=address)
        with connect(first.target) as server:
            assert server.list_runs() == []
        first.kill()
        with ServerProcess(listen=address) as second, connect(second.target) as server:  # a socket left behind is free
            assert server.list_runs() == []
