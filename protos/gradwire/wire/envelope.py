"""Messages that are nearly all ``data``, serialized with one copy of it.

protobuf copies bytes when a field is set and again when the message is serialized; over a long vector that is a large
part of a step. Here protobuf writes everything but ``data``, which is joined to it: fields may stand in any order on
the wire, so any protobuf reads the result.
"""

from __future__ import annotations

from google.protobuf.message import Message

from gradwire.v1 import train_pb2
from gradwire.wire.encoding import Array, encoded

_LENGTH_DELIMITED = 2  # the wire type of messages and bytes


def gradients_request(gradients: train_pb2.Gradients, values: Array) -> bytes:
    """A serialized TrainRequest: ``gradients``, which has no data yet, with ``values``, in the dtype of the wire."""
    return _wrapped(_GRADIENTS, gradients, _GRADIENTS_DATA, values)


def parameters_response(parameters: train_pb2.Parameters, values: Array) -> bytes:
    """A serialized TrainResponse: ``parameters``, which has no data yet, with ``values``, in the dtype of the wire."""
    return _wrapped(_PARAMETERS, parameters, _PARAMETERS_DATA, values)


def _wrapped(outer: bytes, message: Message, inner: bytes, values: Array) -> bytes:
    data = encoded(values)
    fields = message.SerializeToString()
    head = inner + _varint(data.nbytes)
    return b"".join((outer, _varint(len(fields) + len(head) + data.nbytes), fields, head, data))


def _tag(field: int) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_GRADIENTS = _tag(train_pb2.TrainRequest.GRADIENTS_FIELD_NUMBER)
_GRADIENTS_DATA = _tag(train_pb2.Gradients.DATA_FIELD_NUMBER)
_PARAMETERS = _tag(train_pb2.TrainResponse.PARAMETERS_FIELD_NUMBER)
_PARAMETERS_DATA = _tag(train_pb2.Parameters.DATA_FIELD_NUMBER)
