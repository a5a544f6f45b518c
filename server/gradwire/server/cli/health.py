"""``gradwire health``: what containers and supervisors ask every few seconds.

It needs gRPC and click, and nothing else: to import protobuf, or numpy, takes as long as all the rest. So the two tiny
messages of ``grpc.health.v1`` are written and read by hand.
"""

from __future__ import annotations

import sys
from typing import Any

import click
import grpc

from gradwire.server.cli.target import channel_to, spoken_beside_a_token, unanswered, with_target
from gradwire.wire.printable import printable
from gradwire.wire.service import SERVICE_NAME
from gradwire.wire.tls import TLS

MAX_SECONDS = 86_400
"""A day; gRPC takes a deadline that is too far away for one that is over."""

_REQUEST = bytes([0x0A, len(SERVICE_NAME)]) + SERVICE_NAME.encode()
"""HealthCheckRequest: field 1, a string of so many bytes."""
_SERVING = bytes([0x08, 1])
"""HealthCheckResponse: field 1, the number of SERVING."""


def _seconds(ctx: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 < value <= MAX_SECONDS:  # not-a-number neither
        raise click.BadParameter(f"{value} is no time to wait; expected seconds above 0, at most {MAX_SECONDS}")
    return value


@click.command("health")
@with_target
@click.option("--timeout", default=3.0, show_default=True, callback=_seconds, help="Seconds.")
@click.option("--verbose", is_flag=True, help="What `gradwire status` says too; for administrators.")
def health_command(target: str, tls: TLS | None, timeout: float, verbose: bool) -> None:
    """Exit 0 if a gradwire server is SERVING at TARGET, else 1.

    One that starts says, with --verbose, how far it is with bringing its runs back.
    """
    given, tls = tls, spoken_beside_a_token(target, tls)
    with channel_to(target, tls) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            answer = check(_REQUEST, timeout=timeout)
        except grpc.RpcError as error:
            raise click.ClickException(printable(unanswered(error, target, tls))) from None
    serving = answer == _SERVING
    click.echo(f"{target}: {'SERVING' if serving else 'NOT_SERVING'}")
    if verbose:
        _say_status(target, given)
    if not serving:
        sys.exit(1)


def _say_status(target: str, tls: TLS | None) -> None:
    """Who may not be told that is told so, which says nothing of the server's health."""
    from gradwire.server.cli.about import say_status  # not before: a plain check needs none of it
    from gradwire.server.cli.calls import calling

    try:
        with calling(target, tls) as stub:
            say_status(stub)
    except click.ClickException as error:
        click.echo(error.format_message(), err=True)
