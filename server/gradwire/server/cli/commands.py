"""``gradwire``: all its commands."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradwire.server.cli.numbers import seconds
from gradwire.server.cli.runs import runs_group
from gradwire.server.cli.serve import serve_command
from gradwire.wire.printable import printable
from gradwire.wire.service import SERVICE_NAME, local_options


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="gradwire")
def cli() -> None:
    """gradwire: stream gradients, get parameters back."""


cli.add_command(runs_group)
cli.add_command(serve_command)


@cli.command("health")
@click.option("--target", default="localhost:50051", envvar="GRADWIRE_TARGET", show_default=True, show_envvar=True)
@click.option("--timeout", type=seconds, default=3.0, show_default=True, help="Seconds.")
def health_command(target: str, timeout: float) -> None:
    """Exit 0 if a gradwire server is SERVING at TARGET, else 1."""
    with grpc.insecure_channel(target, local_options(target)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE_NAME), timeout=timeout)
        except grpc.RpcError as error:
            raise click.ClickException(printable(f"{target}: {error.code().name}: {error.details()}")) from None
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    click.echo(f"{target}: {name}")
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        sys.exit(1)


@cli.command("doctor", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def doctor_command(arguments: Sequence[str]) -> None:
    """Measure a server and the way to it: which encoding and block would give what step time."""
    sys.argv[1:] = arguments
    runpy.run_module("gradwire.client.doctor", run_name="__main__")  # the client's own program
