"""The one table of refusals: exception <-> status code <-> reason, both ways."""

from __future__ import annotations

import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from gradwire.wire import errors
from gradwire.wire.errors import (
    DOMAIN,
    MAX_MESSAGE_CHARACTERS,
    MAX_METADATA_BYTES,
    TABLE,
    GradwireError,
    from_status,
    to_status,
)

each_class = pytest.mark.parametrize("cls", TABLE.values(), ids=TABLE)


def info_of(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert len(status.details) == 1
    assert status.details[0].Unpack(info)
    return info


def status_with(*details: object, message: str = "m") -> status_pb2.Status:
    status = status_pb2.Status(code=code_pb2.INTERNAL, message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)  # type: ignore[arg-type]
        status.details.append(packed)
    return status


def test_every_exception_class_is_in_the_table_under_its_own_reason() -> None:
    """A class left out of the table would reach the client as a plain GradwireError."""
    defined = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, GradwireError)}
    assert set(TABLE.values()) == defined - {GradwireError}
    assert len(TABLE) == len(set(TABLE.values())), "reasons must be unique"
    assert all(cls.reason == reason for reason, cls in TABLE.items())


@each_class
def test_reason_and_code_are_well_formed(cls: type[GradwireError]) -> None:
    assert cls.reason.replace("_", "").isupper()
    assert len(cls.reason) <= 63, "google.rpc.ErrorInfo allows 63 characters"
    assert cls.code in code_pb2.Code.values()
    assert cls.code not in (code_pb2.OK, code_pb2.UNKNOWN), "UNKNOWN is what gRPC itself sends"
    assert (cls.__doc__ or "").startswith("Raised ")


@each_class
@pytest.mark.parametrize("applied", [True, False, None])
def test_exception_to_status_and_back(cls: type[GradwireError], applied: bool | None) -> None:
    status = to_status(cls("what happened", applied=applied, expected_sequence=7, tensor="w"))
    assert (status.code, status.message) == (cls.code, "what happened")
    info = info_of(status)
    assert (info.reason, info.domain) == (cls.reason, DOMAIN)
    assert info.metadata["applied"] == {True: "true", False: "false", None: "unknown"}[applied]

    back = from_status(status_pb2.Status.FromString(status.SerializeToString()))
    assert type(back) is cls
    assert (back.message, str(back), back.applied) == ("what happened", "what happened", applied)
    assert back.metadata == {"expected_sequence": "7", "tensor": "w"}


def test_a_message_cannot_write_to_a_terminal_what_others_have_called_something() -> None:
    back = from_status(to_status(errors.RunBusy("held by 'a\x1b[2J\nrunning fine'")))
    assert str(back) == r"held by 'a\x1b[2J\nrunning fine'"


def test_a_refusal_says_not_applied_unless_told_otherwise() -> None:
    assert errors.InvalidSlice("m").applied is False
    assert info_of(to_status(errors.InvalidSlice("m"))).metadata["applied"] == "false"


def test_metadata_is_bounded() -> None:
    """Trailers share the 8 KiB that HTTP/2 peers accept: an error that is too long to send would be lost."""
    many = {f"key{i}": "é" * 1000 for i in range(50)}
    info = info_of(to_status(GradwireError("m", **many)))  # type: ignore[arg-type]
    size = sum(len(key.encode()) + len(value.encode()) for key, value in info.metadata.items())
    assert 0 < size - len("appliedfalse") <= MAX_METADATA_BYTES
    assert size <= 2048 + len("appliedfalse")
    assert info.metadata["applied"] == "false", "whatever else is cut"
    assert all(len(value) <= 256 for value in info.metadata.values())


def test_long_message_is_cut() -> None:
    status = to_status(GradwireError("x" * 5000))
    assert len(status.message) == MAX_MESSAGE_CHARACTERS
    assert status.message.endswith("...")
    exact = "x" * MAX_MESSAGE_CHARACTERS
    assert to_status(GradwireError(exact)).message == exact


def test_unknown_reason_of_a_newer_server_is_a_plain_error() -> None:
    info = error_details_pb2.ErrorInfo(reason="NEW_THING", domain=DOMAIN, metadata={"applied": "true", "a": "b"})
    error = from_status(status_with(info))
    assert type(error) is GradwireError
    assert (error.applied, error.metadata) == (True, {"a": "b"})


@pytest.mark.parametrize(("text", "applied"), [("true", True), ("false", False), ("unknown", None), ("maybe", None)])
def test_applied_is_read_from_metadata(text: str, applied: bool | None) -> None:
    info = error_details_pb2.ErrorInfo(reason="FENCED", domain=DOMAIN, metadata={"applied": text})
    error = from_status(status_with(info))
    assert error is not None
    assert error.applied is applied


def test_missing_applied_means_unknown() -> None:
    error = from_status(status_with(error_details_pb2.ErrorInfo(reason="FENCED", domain=DOMAIN)))
    assert error is not None
    assert error.applied is None


def test_foreign_details_are_not_ours() -> None:
    """A proxy's own ErrorInfo is a transport error: the outcome is unknown."""
    foreign = error_details_pb2.ErrorInfo(reason="FENCED", domain="googleapis.com")
    assert from_status(status_with(foreign)) is None
    assert from_status(status_with(error_details_pb2.RetryInfo())) is None
    assert from_status(status_pb2.Status(code=code_pb2.INTERNAL, message="m")) is None


def test_our_detail_is_found_among_others_and_broken_ones() -> None:
    ours = error_details_pb2.ErrorInfo(reason="RUN_BUSY", domain=DOMAIN)
    status = status_with(error_details_pb2.RetryInfo(), ours)
    broken = status.details.add(type_url=status.details[1].type_url, value=b"\xff")
    status.details.insert(0, broken)
    error = from_status(status)
    assert isinstance(error, errors.RunBusy)


def test_within_puts_the_place_in_front() -> None:
    error = errors.InvalidHyperparameter("lr is -1", field="lr")
    assert error.within("group 2") is error
    assert str(error) == error.message == "group 2: lr is -1"
