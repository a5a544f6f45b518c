"""What is joined by hand is what protobuf would have written, to any protobuf that reads it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from gradwire.v1 import train_pb2
from gradwire.wire.encoding import Array, encode
from gradwire.wire.envelope import gradients_request, open_request, open_response, parameters_response

SIZES = (0, 1, 3, 31, 32, 127, 128, 5000, 300_000)  # the length's varint has one byte, two, three


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_both_messages_read_as_protobuf_wrote_them(size: int, dtype: type) -> None:
    values: Array = np.random.default_rng(size).normal(size=(1, size)).astype(dtype)
    data = encode(values, values.dtype)
    header = train_pb2.BlockHeader(steps=3, absent_tensors=[1, 500])
    gradients = train_pb2.Gradients(sequence=2**40, offset=7, last=True, header=header)
    written = gradients_request(gradients, values)
    opened, found_data = open_request(written)
    found = train_pb2.TrainRequest.FromString(written)
    gradients.data = data
    assert found == train_pb2.TrainRequest(gradients=gradients)
    assert found_data == data
    opened.gradients.data = data
    assert opened == found
    parameters = train_pb2.Parameters(sequence=3, steps=1, receipt=train_pb2.Receipt(step=9, gradient_norm=0.5))
    written = parameters_response(parameters, values)
    response, found_data = open_response(written)
    answer = train_pb2.TrainResponse.FromString(written)
    parameters.data = data
    assert answer == train_pb2.TrainResponse(parameters=parameters)
    assert found_data == data
    response.parameters.data = data
    assert response == answer


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 400))
def test_any_numbers_in_the_other_fields(sequence: int, offset: int, size: int) -> None:
    values: Array = np.arange(size, dtype=np.float32)
    gradients = train_pb2.Gradients(sequence=sequence, offset=offset)
    found = train_pb2.TrainRequest.FromString(gradients_request(gradients, values)).gradients
    assert (found.sequence, found.offset, found.data) == (sequence, offset, values.tobytes())


@pytest.mark.parametrize("cut", [np.s_[:, ::2], np.s_[:, 1:3], np.s_[::-1], np.s_[:0]])
def test_rows_that_do_not_lie_densely_are_made_so(cut: tuple[slice, ...]) -> None:
    values = np.arange(40, dtype=np.float32).reshape(4, 10)[cut]
    found = train_pb2.TrainResponse.FromString(parameters_response(train_pb2.Parameters(), values))
    assert found.parameters.data == values.tobytes()


@pytest.mark.parametrize("size", [10, 5000])
def test_what_protobuf_has_written_is_read(size: int) -> None:
    """With the data before the other fields' end, which is how protobuf orders them; with fields that nobody knows."""
    header = train_pb2.BlockHeader(steps=2)
    gradients = train_pb2.Gradients(sequence=300, offset=9, data=bytes(range(256)) * size, last=True, header=header)
    message = train_pb2.TrainRequest(gradients=gradients)
    inner = gradients.SerializeToString()
    unknown = b"\xf8\x07\x05" + b"\xfd\x07abcd" + b"\xf9\x07abcdefgh" + b"\xfa\x07\x02xy"
    for body in (inner, unknown + inner, inner + unknown):
        opened, data = open_request(b"\x12" + _length(len(body)) + body)
        assert data == gradients.data
        assert opened.gradients.sequence == 300
        assert opened.gradients.header == header
        assert opened.gradients.last
    twice = message.SerializeToString() * 2  # protobuf puts the parts of a message together: the last value counts
    assert open_request(twice).data == gradients.data
    again = inner + train_pb2.Gradients(data=b"x" * 6000).SerializeToString()
    assert open_request(b"\x12" + _length(len(again)) + again).data == b"x" * 6000


def _length(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


@given(st.binary(max_size=64), st.integers(0, 6000), st.binary(max_size=64))
def test_bytes_that_are_no_message_are_refused_as_protobuf_refuses_them(head: bytes, size: int, tail: bytes) -> None:
    serialized = b"\x12" + _length(len(head) + size + len(tail)) + head + b"\x1a" * size + tail
    try:
        expected = train_pb2.TrainRequest.FromString(serialized)
    except DecodeError:
        with pytest.raises(DecodeError):
            open_request(serialized)
        return
    opened, data = open_request(serialized)
    assert data == expected.gradients.data
    opened.gradients.data = bytes(data)
    assert opened.gradients == expected.gradients


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.sampled_from([4097, 5000, 2**18, 2**18 + 1]))
def test_the_data_of_large_messages_can_be_used_as_an_array(sequence: int, offset: int, size: int) -> None:
    values: Array = np.ones((1, size), np.float32)
    opened = open_request(gradients_request(train_pb2.Gradients(sequence=sequence, offset=offset), values))
    assert opened.message.gradients.sequence == sequence
    assert np.frombuffer(opened.data, np.float32).flags.aligned
