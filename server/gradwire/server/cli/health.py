"""``gradwire health``: what containers and supervisors ask every few seconds. Needs gRPC, and nothing of the server."""

from __future__ import annotations

import sys

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradwire.wire.service import SERVICE_NAME, local_options

MAX_SECONDS = 86_400
"""A day; gRPC takes a deadline that is too far away for one that is over."""


def _seconds(ctx: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 < value <= MAX_SECONDS:  # not-a-number neither
        raise click.BadParameter(f"{value} is no time to wait; expected seconds above 0, at most {MAX_SECONDS}")
    return value


@click.command("health")
@click.option("--target", default="localhost:50051", envvar="GRADWIRE_TARGET", show_default=True, show_envvar=True)
@click.option("--timeout", default=3.0, show_default=True, callback=_seconds, help="Seconds.")
def health_command(target: str, timeout: float) -> None:
    """Exit 0 if a gradwire server is SERVING at TARGET, else 1."""
    with grpc.insecure_channel(target, local_options(target)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME), timeout=timeout)
        except grpc.RpcError as error:
            raise click.ClickException(f"{target}: {error.code().name}: {error.details()}") from None
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    click.echo(f"{target}: {name}")
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        sys.exit(1)
