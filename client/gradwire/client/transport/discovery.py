"""Where a server is, if nobody says it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gradwire.client.errors import ConnectionLost
from gradwire.client.transport.channels import answers
from gradwire.client.transport.embedded_server import EmbeddedServer
from gradwire.wire.hosts import host_and_port, is_unix
from gradwire.wire.tls import TLS
from gradwire.wire.tls_handshake import tls_fault

DEFAULT_TARGET = "localhost:50051"


@dataclass(frozen=True)
class FoundServer:
    """A server's target, and in words which server it is and why."""

    target: str
    origin: str
    embedded: EmbeddedServer | None = None
    """Started for this; whoever takes it closes it."""


def named_target(target: str | None) -> str | None:
    """The target that the caller, or else GRADWIRE_TARGET, names; None: neither does. Raises ValueError, TypeError."""
    if target is not None:
        _check("target", target)
        return target
    named = os.environ.get("GRADWIRE_TARGET") or None
    if named is not None:
        _check("GRADWIRE_TARGET", named)
    return named


def find_server(target: str | None, data_dir: str | Path | None = None, tls: TLS | None = None) -> FoundServer:
    """See `connect`. Raises EmbeddedServerError, ValueError, TypeError; ConnectionLost where only TLS is in the way."""
    named = named_target(target)
    if data_dir is not None and (target != "embedded" or not os.fspath(data_dir)):
        raise ValueError(
            f"data_dir is {os.fspath(data_dir)!r}, and target {target!r}; expected a directory, and target='embedded': "
            "other servers have been told theirs"
        )
    if named is None:
        if answers(DEFAULT_TARGET, tls):
            return FoundServer(DEFAULT_TARGET, f"{DEFAULT_TARGET}, which answers")
        if (fault := tls_fault(DEFAULT_TARGET, tls)) is not None:
            raise ConnectionLost(
                f"{fault}. target='embedded' starts another one",
                applied=False,
                target=DEFAULT_TARGET,
            )
    elif named != "embedded":
        return FoundServer(named, named if target is not None else f"{named}, from GRADWIRE_TARGET")
    embedded = EmbeddedServer(data_dir)
    origin = f"an embedded server, process {embedded.pid}, which ends with this one"
    return FoundServer(embedded.target, origin, embedded)


def _check(what: str, target: object) -> None:
    """Nobody ever answers at what cannot be a target; that is not waited for."""
    message = f"{what} is {target!r}; expected 'HOST:PORT', 'unix:PATH', 'embedded' or None"
    if not isinstance(target, str):
        raise TypeError(message)
    if target != "embedded" and not is_unix(target):
        host, port = host_and_port(target)
        if not host or not port.isdecimal():
            raise ValueError(message)
