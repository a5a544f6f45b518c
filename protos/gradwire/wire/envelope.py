"""Messages that are nearly all ``data``, written with one copy of it and read with none.

protobuf copies bytes when a field is set, when a message is serialized, when it is parsed and when a field is read: for
a long vector that is a large part of a step. Here protobuf handles everything but ``data``, which is joined to the rest
or found in it. Fields may stand in any order on the wire, so any protobuf reads what is written here, and what any
protobuf has written is read here.
"""

from __future__ import annotations

import functools
from typing import Generic, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from gradwire.v1 import train_pb2
from gradwire.wire.encoding import Array, encoded

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5  # wire types
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}

_ALIGNMENT = 4
_LONGEST_LENGTH = 5
"""Bytes of a length that every protobuf reads."""

_WHOLE_BYTES = 4096
"""Up to this size protobuf parses a message faster as it is."""

Envelope = TypeVar("Envelope", bound=Message)


def gradients_request(gradients: train_pb2.Gradients, values: Array) -> bytes:
    """A serialized TrainRequest: ``gradients``, which has no data yet, with ``values``, in the dtype of the wire."""
    return _wrapped(_GRADIENTS, gradients, _GRADIENTS_DATA, values)


def parameters_response(parameters: train_pb2.Parameters, values: Array) -> bytes:
    """A serialized TrainResponse: ``parameters``, which has no data yet, with ``values``, in the dtype of the wire."""
    return _wrapped(_PARAMETERS, parameters, _PARAMETERS_DATA, values)


class Opened(NamedTuple, Generic[Envelope]):
    """A message without ``data``, and that: bytes that belong to the serialized message, or to a copy of them."""

    message: Envelope
    data: bytes | memoryview


def open_request(serialized: bytes) -> Opened[train_pb2.TrainRequest]:
    """A serialized TrainRequest. Raises google.protobuf.message.DecodeError."""
    found = _found(serialized, _GRADIENTS, _GRADIENTS_DATA)
    if found is not None:
        return Opened(train_pb2.TrainRequest.FromString(found[0]), found[1])
    message = train_pb2.TrainRequest.FromString(serialized)
    return Opened(message, message.gradients.data)


def open_response(serialized: bytes) -> Opened[train_pb2.TrainResponse]:
    """A serialized TrainResponse. Raises google.protobuf.message.DecodeError."""
    found = _found(serialized, _PARAMETERS, _PARAMETERS_DATA)
    if found is not None:
        return Opened(train_pb2.TrainResponse.FromString(found[0]), found[1])
    message = train_pb2.TrainResponse.FromString(serialized)
    return Opened(message, message.parameters.data)


def _wrapped(outer: bytes, message: Message, inner: bytes, values: Array) -> bytes:
    """Puts ``data`` where the reader can use it as an array without a copy: at a multiple of _ALIGNMENT bytes, which
    Python's bytes objects begin at. The room for that is made in the two lengths, which may have leading zeros."""
    fields = message.SerializeToString()
    if values.nbytes <= _WHOLE_BYTES:  # it will be copied all the same, and a view of it costs more than that
        size = varint(values.nbytes)
        length = varint(len(fields) + len(inner) + len(size) + values.nbytes)
        return b"".join((outer, length, fields, inner, size, values.tobytes()))
    data = encoded(values)
    size = varint(data.nbytes)
    length = varint(len(fields) + len(inner) + len(size) + data.nbytes)
    missing = -(len(outer) + len(length) + len(fields) + len(inner) + len(size)) % _ALIGNMENT
    size = _widened(size, min(len(size) + missing, _LONGEST_LENGTH))
    length = varint(len(fields) + len(inner) + len(size) + data.nbytes)
    missing = -(len(outer) + len(length) + len(fields) + len(inner) + len(size)) % _ALIGNMENT
    length = _widened(length, min(len(length) + missing, _LONGEST_LENGTH))
    return b"".join((outer, length, fields, inner, size, data))


def _widened(varint: bytes, width: int) -> bytes:
    """The same number in ``width`` bytes."""
    more = width - len(varint)
    return varint[:-1] + bytes([varint[-1] | 0x80]) + b"\x80" * (more - 1) + b"\0" if more > 0 else varint


def _found(serialized: bytes, outer: bytes, inner: bytes) -> tuple[bytes, memoryview] | None:
    """The message without its data field, and the data. None: it is small, or not of the usual form."""
    if len(serialized) <= _WHOLE_BYTES or not serialized.startswith(outer):
        return None
    length, start = _read_varint(serialized, len(outer))
    if start + length != len(serialized):
        return None  # something follows: protobuf knows how to put that together
    position = start
    while position < len(serialized):
        if serialized.startswith(inner, position):
            size, begin = _read_varint(serialized, position + len(inner))
            end = begin + size
            if end > len(serialized):
                raise DecodeError(f"data of {size} bytes in a message of {len(serialized)}")
            fields = serialized[start:position] + serialized[end:]
            if len(fields) > _WHOLE_BYTES or inner in fields:
                return None  # perhaps a second data field, of which the last counts
            return outer + varint(len(fields)) + fields, memoryview(serialized)[begin:end]
        position = _skip(serialized, position)
    return None


def _skip(serialized: bytes, position: int) -> int:
    """Where the field after the one at ``position`` begins."""
    tag, position = _read_varint(serialized, position)
    wire_type = tag & 7
    if wire_type == _VARINT:
        return _read_varint(serialized, position)[1]
    if wire_type == _LENGTH_DELIMITED:
        size, position = _read_varint(serialized, position)
        return position + size
    if wire_type in _FIXED_BYTES:
        return position + _FIXED_BYTES[wire_type]
    raise DecodeError(f"wire type {wire_type}, which is none of protobuf's")


def _read_varint(serialized: bytes, position: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while position < len(serialized) and shift < 64:
        byte = serialized[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise DecodeError("a number without an end")


def field(number: int) -> bytes:
    """The key of a field that is a message, a text or bytes."""
    return varint(number << 3 | _LENGTH_DELIMITED)


def length_delimited(key: bytes, *parts: bytes) -> bytes:
    """A field: its ``key``, as `field` returns it, its size, and ``parts``, which are serialized already."""
    return b"".join((key, varint(sum(map(len, parts))), *parts))


@functools.lru_cache(4096)
def varint(value: int) -> bytes:
    """A number as it is written."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_GRADIENTS = field(train_pb2.TrainRequest.GRADIENTS_FIELD_NUMBER)
_GRADIENTS_DATA = field(train_pb2.Gradients.DATA_FIELD_NUMBER)
_PARAMETERS = field(train_pb2.TrainResponse.PARAMETERS_FIELD_NUMBER)
_PARAMETERS_DATA = field(train_pb2.Parameters.DATA_FIELD_NUMBER)
