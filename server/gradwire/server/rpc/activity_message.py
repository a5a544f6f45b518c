"""What is waited for, as callers are told of it."""

from __future__ import annotations

from gradwire.server.engine.activity import Wait
from gradwire.v1 import service_pb2


def encode_wait(wait: Wait | None) -> service_pb2.Wait | None:
    """None: nothing is."""
    if wait is None:
        return None
    return service_pb2.Wait(kind=int(wait.kind), text=wait.text, seconds=wait.seconds)  # type: ignore[arg-type]
