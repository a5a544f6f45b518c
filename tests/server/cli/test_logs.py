"""What of a record comes to the server's log."""

from __future__ import annotations

import logging

import grpc
import pytest

from gradwire.server.cli.logs import is_news

GRPC = "grpc._cython.cygrpc"
UNSENT = grpc.aio.InternalError('Failed "execute_batch": (<grpc._cython.cygrpc.SendStatusFromServerOperation>,)')


def record(name: str, error: Exception | None) -> logging.LogRecord:
    about = None if error is None else (type(error), error, None)
    return logging.LogRecord(name, logging.ERROR, __file__, 1, "it was raised in core", None, about)


def test_that_a_peer_has_gone_is_no_error() -> None:
    """As gRPC logs it where the peer goes in the moment in which its stream ends."""
    assert not is_news(record(GRPC, UNSENT))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (GRPC, None),
        (GRPC, ValueError("in a handler")),
        (GRPC, grpc.aio.InternalError("Failed grpc_call_start_batch: 8")),
        ("gradwire.server", UNSENT),
    ],
    ids=["without an error", "a handler's", "a wrong use of gRPC", "of our own"],
)
def test_whatever_else_is_logged_is_shown(name: str, error: Exception | None) -> None:
    assert is_news(record(name, error))
