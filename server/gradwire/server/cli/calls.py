"""Commands that call a server: with a stub for its target, the caller's token, and refusals as messages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import grpc
from click.core import ParameterSource
from google.rpc import status_pb2

from gradwire.server.cli.target import channel_to, unanswered, with_target
from gradwire.v1 import service_pb2_grpc
from gradwire.wire.authorized_channel import AuthorizedChannel
from gradwire.wire.errors import STATUS_DETAILS_KEY, GradwireError, Unauthenticated, from_status
from gradwire.wire.printable import printable
from gradwire.wire.service import MESSAGE_OPTIONS
from gradwire.wire.tls import TLS
from gradwire.wire.tokens import TokenSource, token_variable, tokens_to

Stub = service_pb2_grpc.OptimizerServiceStub


def with_stub(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command of click's the options of `with_target`; it is called with a stub, then its own arguments.

    A token comes from the environment or the user's file, never from the command line, which others can read. The
    default target gets none: nobody has named it, and anybody may listen there.
    """

    @functools.wraps(function)
    def command(target: str, tls: TLS | None, **arguments: Any) -> None:
        with calling(target, tls) as stub:
            function(stub, **arguments)

    return with_target(command)


@contextmanager
def calling(target: str, tls: TLS | None) -> Iterator[Stub]:
    """A stub for the target of the command that is run now. What is refused in it is raised as
    click.ClickException."""
    named = click.get_current_context().get_parameter_source("target") is not ParameterSource.DEFAULT
    tokens, spoken = _tokens_to(target, tls) if named else (None, tls)
    with channel_to(target, spoken, MESSAGE_OPTIONS) as channel:
        called: Any = channel if tokens is None else AuthorizedChannel(channel, tokens)
        try:
            yield Stub(called)
        except grpc.RpcError as error:
            message = _message(error, target, spoken, named=named)
            if spoken is not tls:
                message += " (TLS is spoken because there is a token)"
            raise click.ClickException(printable(message)) from None
        except BrokenPipeError:
            raise  # whoever read has gone, and need not be told: click ends in silence
        except (GradwireError, OSError) as error:
            raise click.ClickException(printable(str(error))) from None


def _tokens_to(target: str, tls: TLS | None) -> tuple[TokenSource | None, TLS | None]:
    """See `tokens_to`. Raises click.ClickException."""
    try:
        return tokens_to(target, tls)
    except (OSError, ValueError) as error:
        raise click.ClickException(printable(str(error))) from None


def _message(error: Any, target: str, tls: TLS | None, *, named: bool) -> str:
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            refusal = from_status(status_pb2.Status.FromString(value))
            if refusal is not None:
                said = f"{refusal.message} ({refusal.reason or 'refused'})"
                if isinstance(refusal, Unauthenticated) and not named and (variable := token_variable()) is not None:
                    said += f"; {variable} is for a target that is named: pass --target, or set GRADWIRE_TARGET"
                return said
    return unanswered(error, target, tls)
