"""Where a server is, if nobody says it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from gradwire.client.transport.channels import answers
from gradwire.client.transport.embedded_server import EmbeddedServer

DEFAULT_TARGET = "localhost:50051"


@dataclass(frozen=True)
class FoundServer:
    """A server's target, and in words which server it is and why."""

    target: str
    origin: str
    embedded: EmbeddedServer | None = None
    """Started for this; whoever takes it closes it."""


def find_server(target: str | None) -> FoundServer:
    """See `connect`. Raises EmbeddedServerError."""
    if target is None:
        target = os.environ.get("GRADWIRE_TARGET")
        if target and target != "embedded":
            return FoundServer(target, f"{target}, from GRADWIRE_TARGET")
        if not target and answers(DEFAULT_TARGET):
            return FoundServer(DEFAULT_TARGET, f"{DEFAULT_TARGET}, which answers")
        target = "embedded"
    if target == "embedded":
        embedded = EmbeddedServer()
        origin = f"an embedded server, process {embedded.pid}, which ends with this one"
        return FoundServer(embedded.target, origin, embedded)
    return FoundServer(target, target)
