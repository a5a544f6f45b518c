"""The one table of refusals: exception <-> gRPC status code <-> reason.

The server raises these exceptions anywhere, the servicer turns them into a status with ``google.rpc.ErrorInfo``, and
the client raises the same class again. Nothing here imports grpc: codes are the numbers of ``google.rpc.Code``, which
are gRPC's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from gradwire.wire.printable import printable

DOMAIN = "gradwire"
"""``ErrorInfo.domain`` of every refusal."""

STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata key under which gRPC carries a serialized ``google.rpc.Status``."""

MAX_METADATA_BYTES = 2048
"""``ErrorInfo.metadata`` is cut to this size; trailers share the 8 KiB that HTTP/2 peers accept by default."""

MAX_MESSAGE_CHARACTERS = 1000


class GradwireError(Exception):
    """Root of everything that gradwire refuses.

    ``applied`` says whether the step or write that was asked for took effect; None means that this is not known.
    ``metadata`` holds what was expected, as strings. ``retry_seconds``: after so long it may be
    otherwise; None: nothing is known of that.
    """

    code: ClassVar[int] = code_pb2.UNKNOWN
    reason: ClassVar[str] = ""

    def __init__(self, message: str, *, applied: bool | None = False, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.applied = applied
        self.retry_seconds: float | None = None
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}

    def within(self, place: str) -> GradwireError:
        """The same error with ``place`` in front of its message."""
        self.message = f"{place}: {self.message}"
        self.args = (self.message,)
        return self


class RunNotFound(GradwireError):
    """Raised when no run has this name: never created, deleted, or lost with the memory of a server that restarted."""

    code, reason = code_pb2.NOT_FOUND, "RUN_NOT_FOUND"


class RunAlreadyExists(GradwireError):
    """Raised when a run of this name exists and was created by another request."""

    code, reason = code_pb2.ALREADY_EXISTS, "RUN_ALREADY_EXISTS"


class InvalidSpec(GradwireError):
    """Raised when a run's name, layout or optimizer choice is malformed."""

    code, reason = code_pb2.INVALID_ARGUMENT, "INVALID_SPEC"


class InvalidHyperparameter(GradwireError):
    """Raised when a hyperparameter, given at creation or as an override, is out of its range."""

    code, reason = code_pb2.INVALID_ARGUMENT, "INVALID_HYPERPARAMETER"


class InvalidSlice(GradwireError):
    """Raised when a slice has a wrong size, lies outside the vector, overlaps another or touches an absent tensor."""

    code, reason = code_pb2.INVALID_ARGUMENT, "INVALID_SLICE"


class IncompleteValues(GradwireError):
    """Raised when the values end before every element they must cover has arrived."""

    code, reason = code_pb2.INVALID_ARGUMENT, "INCOMPLETE_VALUES"


class ProtocolViolation(GradwireError):
    """Raised when messages come in an order, or with a content, that the contract does not allow."""

    code, reason = code_pb2.INVALID_ARGUMENT, "PROTOCOL_VIOLATION"


class NonFiniteGradient(GradwireError):
    """Raised when a gradient holds a NaN or an infinity and the run's policy is REJECT."""

    code, reason = code_pb2.INVALID_ARGUMENT, "NON_FINITE_GRADIENT"


class SequenceMismatch(GradwireError):
    """Raised when a block's sequence number is neither the next one nor a repeat of the last one."""

    code, reason = code_pb2.FAILED_PRECONDITION, "SEQUENCE_MISMATCH"


class RunBusy(GradwireError):
    """Raised when another worker is attached to the run and no takeover was asked for."""

    code, reason = code_pb2.FAILED_PRECONDITION, "RUN_BUSY"


class LeaderBusy(GradwireError):
    """Raised when a worker would lead a shared run, or change what only its leader may, and another one leads."""

    code, reason = code_pb2.FAILED_PRECONDITION, "LEADER_BUSY"


class ClientTooOld(GradwireError):
    """Raised when a run needs its workers to understand something that this client does not: use a newer one."""

    code, reason = code_pb2.FAILED_PRECONDITION, "CLIENT_TOO_OLD"


class Fenced(GradwireError):
    """Raised on a stream that has lost its run to a newer stream, or whose run's values were replaced."""

    code, reason = code_pb2.ABORTED, "FENCED"


class Unauthenticated(GradwireError):
    """Raised when a call brings no token or certificate, or one that the server does not know, or no longer."""

    code, reason = code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED"


class PermissionDenied(GradwireError):
    """Raised when the caller's role, or the names that its token is for, do not allow what it asks for."""

    code, reason = code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED"


class PermissionRevoked(GradwireError):
    """Raised on a stream whose token or certificate was revoked, or ended, while it was open."""

    code, reason = code_pb2.UNAUTHENTICATED, "PERMISSION_REVOKED"


class TooManyParameters(GradwireError):
    """Raised when a run has more elements than the server or the contract accepts. Nothing has been allocated."""

    code, reason = code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_PARAMETERS"


class MemoryLimitExceeded(GradwireError):
    """Raised when the server's memory limit leaves no room. Nothing has been allocated; it may help to try later."""

    code, reason = code_pb2.RESOURCE_EXHAUSTED, "MEMORY_LIMIT_EXCEEDED"


class QuotaExceeded(GradwireError):
    """Raised when a tenant holds as much as it may: of runs, memory, streams, or elements or tensors in one run;
    and for a block of more steps than its rates allow in a minute."""

    code, reason = code_pb2.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"


class ResultTooLarge(GradwireError):
    """Raised when the trajectory that a block asks for is larger than the server would remember."""

    code, reason = code_pb2.RESOURCE_EXHAUSTED, "RESULT_TOO_LARGE"


class Stalled(GradwireError):
    """Raised when the peer did not take a reply off the stream within the server's stall timeout."""

    code, reason = code_pb2.DEADLINE_EXCEEDED, "STALLED"


class Draining(GradwireError):
    """Raised when the server is about to stop and accepts no further work."""

    code, reason = code_pb2.UNAVAILABLE, "DRAINING"


class Starting(GradwireError):
    """Raised when the server is still bringing its runs back; it helps to try again."""

    code, reason = code_pb2.UNAVAILABLE, "STARTING"


class StorageFull(GradwireError):
    """Raised when the server's disk is full. Nothing was applied; it may help to try later."""

    code, reason = code_pb2.RESOURCE_EXHAUSTED, "STORAGE_FULL"


class StorageFailed(GradwireError):
    """Raised when the server could not write to its disk. Where ``applied`` is None, its next start will tell."""

    code, reason = code_pb2.UNAVAILABLE, "STORAGE_FAILED"


class RunDamaged(GradwireError):
    """Raised when a run is stored but could not be brought back, or its device failed: it can only be deleted or
    replaced, or brought back by what the message says."""

    code, reason = code_pb2.DATA_LOSS, "RUN_DAMAGED"


class SnapshotNotFound(GradwireError):
    """Raised when a run has no such snapshot, or has it no more."""

    code, reason = code_pb2.NOT_FOUND, "SNAPSHOT_NOT_FOUND"


class InternalError(GradwireError):
    """Raised when the server failed in a way nobody planned for; whether the request took effect is not known."""

    code, reason = code_pb2.INTERNAL, "INTERNAL"


TABLE: Mapping[str, type[GradwireError]] = {
    cls.reason: cls
    for cls in (
        RunNotFound,
        RunAlreadyExists,
        InvalidSpec,
        InvalidHyperparameter,
        InvalidSlice,
        IncompleteValues,
        ProtocolViolation,
        NonFiniteGradient,
        SequenceMismatch,
        RunBusy,
        LeaderBusy,
        ClientTooOld,
        Fenced,
        Unauthenticated,
        PermissionDenied,
        PermissionRevoked,
        TooManyParameters,
        MemoryLimitExceeded,
        QuotaExceeded,
        ResultTooLarge,
        Stalled,
        Draining,
        Starting,
        StorageFull,
        StorageFailed,
        RunDamaged,
        SnapshotNotFound,
        InternalError,
    )
}
"""Reason -> exception class. The class carries the status code, so this is the whole table."""

_APPLIED_TO_TEXT = {True: "true", False: "false", None: "unknown"}
_TEXT_TO_APPLIED = {text: applied for applied, text in _APPLIED_TO_TEXT.items()}


def shorten(text: str, limit: int = 100) -> str:
    """``text`` cut to ``limit`` characters, for values of a peer that go into an error message."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def to_status(error: GradwireError) -> status_pb2.Status:
    """``error`` as a ``google.rpc.Status`` whose first detail is the ErrorInfo; a RetryInfo may follow."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    info.metadata["applied"] = _APPLIED_TO_TEXT[error.applied]
    room = MAX_METADATA_BYTES
    for key, value in error.metadata.items():
        value = shorten(value, 256)
        room -= len(key.encode()) + len(value.encode())
        if room < 0:
            break
        info.metadata[key] = value
    status = status_pb2.Status(code=error.code, message=shorten(error.message, MAX_MESSAGE_CHARACTERS))
    status.details.add().Pack(info)
    if error.retry_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_seconds * 1e9))
        status.details.add().Pack(retry)
    return status


def from_status(status: status_pb2.Status) -> GradwireError | None:
    """The exception that ``status`` stands for; None where it has no ErrorInfo of ours.

    A reason that this version does not know (a newer server) becomes a plain GradwireError.
    """
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        try:
            found = detail.Unpack(info)
        except DecodeError:
            continue
        if found and info.domain == DOMAIN:
            metadata = dict(info.metadata)
            applied = _TEXT_TO_APPLIED.get(metadata.pop("applied", "unknown"))
            error = TABLE.get(info.reason, GradwireError)(printable(status.message), applied=applied)
            error.metadata = metadata
            error.retry_seconds = _retry_seconds(status)
            return error
    return None


def _retry_seconds(status: status_pb2.Status) -> float | None:
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        try:
            if detail.Unpack(retry):
                return float(retry.retry_delay.ToNanoseconds()) / 1e9
        except DecodeError:
            continue
    return None
