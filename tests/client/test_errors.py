"""From a failed call to the exception of the table, or to a transport error whose outcome is unknown."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from gradwire.client.errors import ConnectionLost, from_rpc_error, is_transient, translate
from gradwire.client.transport.link import Link
from gradwire.client.transport.retry import RetryPolicy, retrying
from gradwire.wire.errors import STATUS_DETAILS_KEY, Draining, GradwireError, RunBusy, StorageFull, to_status


class FailedCall(grpc.RpcError):
    """What gRPC raises for a call."""

    def __init__(self, code: grpc.StatusCode, trailers: tuple[tuple[str, bytes], ...] | None = ()) -> None:
        self._code = code
        self._trailers = trailers

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "what gRPC says"

    def trailing_metadata(self) -> Any:
        return self._trailers


def test_our_status_becomes_our_exception() -> None:
    details = to_status(RunBusy("taken", attached_worker_id="w")).SerializeToString()
    call = FailedCall(grpc.StatusCode.FAILED_PRECONDITION, (("x", b"y"), (STATUS_DETAILS_KEY, details)))
    error = translate(call, "host:1")
    assert isinstance(error, RunBusy)
    assert (error.message, error.metadata) == ("taken", {"attached_worker_id": "w"})


@pytest.mark.parametrize(
    "trailers", [None, (), ((STATUS_DETAILS_KEY, b"\xff\xff"),), ((STATUS_DETAILS_KEY, b""),)], ids=str
)
def test_status_without_our_detail_is_a_transport_error(trailers: tuple[tuple[str, bytes], ...] | None) -> None:
    call = FailedCall(grpc.StatusCode.UNAVAILABLE, trailers)
    assert from_rpc_error(call) is None
    error = translate(call, "host:1")
    assert isinstance(error, ConnectionLost)
    assert error.applied is None, "a transport error says nothing of the step"
    assert "host:1" in str(error)
    assert "what gRPC says" in str(error)


def test_transient_codes_are_those_where_another_attempt_can_help() -> None:
    """What the peer will refuse again is not among them: a missing method, a bad argument, no permission."""
    never = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "OUT_OF_RANGE"}
    assert is_transient(FailedCall(grpc.StatusCode.UNAVAILABLE))
    assert is_transient(FailedCall(grpc.StatusCode.CANCELLED))
    assert not any(is_transient(FailedCall(grpc.StatusCode[name])) for name in never)


def refused(error: GradwireError) -> FailedCall:
    return FailedCall(grpc.StatusCode.UNAVAILABLE, ((STATUS_DETAILS_KEY, to_status(error).SerializeToString()),))


@pytest.mark.parametrize(
    ("failures", "applied"),
    [
        ([StorageFull("full")], False),
        ([Draining("soon"), StorageFull("full")], False),
        ([None, StorageFull("full")], None),
        ([None, Draining("soon"), StorageFull("full")], None),
        ([Draining("soon"), None, StorageFull("full")], None),
    ],
    ids=str,
)
def test_a_refusal_speaks_of_the_last_attempt_alone(failures: list[GradwireError | None], applied: bool | None) -> None:
    """None: the connection broke. What had been asked for may have been done by then."""
    left = list(failures)

    def call() -> None:
        failure = left.pop(0)
        raise FailedCall(grpc.StatusCode.UNAVAILABLE) if failure is None else refused(failure)

    with grpc.insecure_channel("host:1") as unused, pytest.raises(StorageFull) as caught:
        retrying(call, RetryPolicy(initial_backoff_seconds=0.001), Link("host:1", unused))
    assert caught.value.applied is applied
