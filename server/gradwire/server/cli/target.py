"""Which server a command is for, and how it is spoken with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click
import grpc

from gradwire.wire.hosts import is_loopback
from gradwire.wire.printable import printable
from gradwire.wire.proxies import proxy_to
from gradwire.wire.service import local_options
from gradwire.wire.tls import TLS, tls_of, tls_options, tls_to

_OPTIONS = {
    "--tls-ca": "PEM file of the authorities that may vouch for the server.",
    "--tls-cert": "PEM file of this client's certificate.",
    "--tls-key": "PEM file of its private key.",
    "--tls-server-name": "Name that the server's certificate must have, if not the host of TARGET.",
}


def with_target(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command of click's its options; it is called with ``target`` and ``tls``."""

    @functools.wraps(function)
    def command(
        target: str,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        tls_server_name: str | None,
        **arguments: Any,
    ) -> None:
        try:
            tls = tls_of(tls_ca, tls_cert, tls_key, tls_server_name)
        except ValueError as error:
            raise click.UsageError(printable(str(error))) from None
        function(target=target, tls=tls, **arguments)

    for name, text in reversed(_OPTIONS.items()):
        variable = f"GRADWIRE_{name.strip('-').replace('-', '_').upper()}"
        command = click.option(name, envvar=variable, show_envvar=True, help=text)(command)
    option = click.option(
        "--target", default="localhost:50051", envvar="GRADWIRE_TARGET", show_default=True, show_envvar=True
    )
    return option(command)


def spoken_beside_a_token(target: str, tls: TLS | None) -> TLS | None:
    """How a command speaks to ``target`` that sends no token: as the others do, which have one. Over loopback, where
    that changes nothing, nobody looks for one. Raises click.ClickException for a token that cannot be read."""
    if tls is not None or is_loopback(target):
        return tls
    from gradwire.wire.tokens import tokens_to  # not before: health checks go to loopback

    try:
        return tokens_to(target, tls)[1]
    except (OSError, ValueError) as error:
        raise click.ClickException(printable(str(error))) from None


def unanswered(error: Any, target: str, tls: TLS | None) -> str:
    """What a failed call says, or TLS where that is the cause."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        from gradwire.wire.tls_handshake import tls_fault  # not before: a health check that passes needs none of it

        fault = tls_fault(target, tls)
        if fault is not None:
            return fault
        proxy = proxy_to(target)
        if proxy is not None:
            return f"no gradwire server at {target}, through the proxy that {proxy.variable} names, {proxy.shown}"
    return f"{target}: {error.code().name}: {error.details()}"


def channel_to(target: str, tls: TLS | None, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
    """A channel, to be closed. Raises click.ClickException for files that cannot be read."""
    all_options = [*options, *local_options(target)]
    tls = tls_to(target, tls)
    if tls is None:
        return grpc.insecure_channel(target, all_options)
    from gradwire.wire.tls_handshake import checked  # not before: most health checks need none of it

    try:
        pem = checked(tls)
    except (OSError, ValueError) as error:
        raise click.ClickException(printable(str(error))) from None
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(*pem), [*all_options, *tls_options(tls)])
