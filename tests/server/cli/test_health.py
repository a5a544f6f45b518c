"""``gradwire health`` is cheap, and says what is wrong."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from click.testing import CliRunner, Result
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gradwire.server.cli.commands import cli
from gradwire.wire.service import SERVICE_NAME
from tests.faults.hosted import HostedServer


@pytest.fixture
def hosted() -> Iterator[HostedServer]:
    with HostedServer() as server:
        yield server


def health_of(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["health", *arguments])


def test_a_server_that_serves_is_healthy_and_asking_loads_next_to_nothing(hosted: HostedServer) -> None:
    """The imports of numpy and protobuf took more processor time than all else of a check."""
    program = f"""
import sys
from gradwire.server.__main__ import main
sys.argv[1:] = ["health", "--target", "{hosted.target}"]
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{hosted.target}: SERVING\n"), done.stderr
    loaded = set(done.stderr.split())
    assert "grpc" in loaded
    assert not {
        name for name in loaded if name.startswith(("numpy", "numba", "gradwire.client", "gradwire.server.cli.r"))
    }


@pytest.mark.parametrize("status", ["SERVING", "NOT_SERVING", "UNKNOWN"])
def test_the_messages_are_those_of_the_health_service(status: str) -> None:
    servicer = health.HealthServicer()
    servicer.set(SERVICE_NAME, health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        result = health_of("--target", target)
    finally:
        server.stop(None)
    assert result.exit_code == (0 if status == "SERVING" else 1)
    assert result.output == f"{target}: {'SERVING' if status == 'SERVING' else 'NOT_SERVING'}\n"


def test_health_of_nothing_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    result = health_of("--target", f"127.0.0.1:{port}", "--timeout", "5")
    assert result.exit_code == 1
    assert "UNAVAILABLE" in result.output


@pytest.mark.parametrize("seconds", ["inf", "nan", "1e300", "0", "-1"])
def test_a_time_that_cannot_be_waited_is_refused_by_name(seconds: str) -> None:
    result = health_of("--timeout", seconds)
    assert result.exit_code == 2
    assert "'--timeout'" in result.output
    assert f"{float(seconds)} is no time to wait" in result.output


def test_help_names_all_commands() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert all(f"\n  {name} " in result.output for name in ("doctor", "health", "runs", "serve"))
