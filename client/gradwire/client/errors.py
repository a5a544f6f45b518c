"""What the client raises: the refusals of the one table, and what only a client can know."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from gradwire.wire.errors import STATUS_DETAILS_KEY, GradwireError, from_status
from gradwire.wire.printable import printable


class ConnectionLost(GradwireError):
    """Raised when the server could not be reached, or went away and did not come back before the deadline.

    ``applied`` is False where nothing had been sent, else None: whether the step took effect is not known.
    """


class RunRolledBack(GradwireError):
    """Raised when the server is at an earlier block than the last one it has acknowledged to this client.

    Nothing is re-sent: whoever trains must decide whether to go on from there (`Run.refresh`) or to start again.
    """


class WorkerForgotten(GradwireError):
    """Raised when more workers have worked on the run than the server remembers, and this one was forgotten meanwhile.

    ``applied`` is None where a block was on its way: nobody can say what became of it. What was acknowledged before is
    worth what its receipt has said. The next step goes on as a new worker's.
    """


class WorkerConflict(GradwireError):
    """Raised when the server has applied blocks of this worker id that this client never sent."""


class ServerTooOld(GradwireError):
    """Raised when the server does not know what is asked of it, and would have passed it over in silence."""


class LayoutMismatch(GradwireError):
    """Raised when a run that is to be resumed has other tensors, groups or dtype than the ones given."""


class ForkedProcess(GradwireError, RuntimeError):
    """Raised in a forked process that uses a connection or a run of the process that it was forked from."""


class ConnectionClosed(GradwireError, RuntimeError):
    """Raised when a connection, or a run of it, is used after `Server.close`.

    ``applied`` is None where a step was on its way while another thread closed the connection.
    """


class EmbeddedServerError(GradwireError):
    """Raised when the embedded server did not start; the message holds what it said."""


_TRANSIENT = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
)


def from_rpc_error(error: grpc.RpcError) -> GradwireError | None:
    """The refusal that a failed call carries; None where the transport failed and the outcome is unknown."""
    call: Any = error
    for key, value in call.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            status = status_pb2.Status()
            try:
                status.ParseFromString(value)
            except DecodeError:
                return None
            return from_status(status)
    return None


def is_transient(error: grpc.RpcError) -> bool:
    """Whether trying again can help after a transport error."""
    call: Any = error
    return call.code() in _TRANSIENT


def connection_lost(error: grpc.RpcError, target: str, *, applied: bool | None = None) -> ConnectionLost:
    """A transport error as ours."""
    call: Any = error
    return ConnectionLost(
        f"{target}: {call.code().name}: {printable(str(call.details()))}", applied=applied, target=target
    )


def translate(error: grpc.RpcError, target: str) -> GradwireError:
    """The exception for a failed unary or upload call."""
    return from_rpc_error(error) or connection_lost(error, target)
