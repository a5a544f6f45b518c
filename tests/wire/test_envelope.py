"""What is joined by hand is what protobuf would have written, to any protobuf that reads it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwire.v1 import train_pb2
from gradwire.wire.encoding import Array, encode
from gradwire.wire.envelope import gradients_request, parameters_response

SIZES = (0, 1, 3, 31, 32, 127, 128, 5000, 300_000)  # the length's varint has one byte, two, three


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_both_messages_read_as_protobuf_wrote_them(size: int, dtype: type) -> None:
    values: Array = np.random.default_rng(size).normal(size=(1, size)).astype(dtype)
    data = encode(values, values.dtype)
    header = train_pb2.BlockHeader(steps=3, absent_tensors=[1, 500])
    gradients = train_pb2.Gradients(sequence=2**40, offset=7, last=True, header=header)
    found = train_pb2.TrainRequest.FromString(gradients_request(gradients, values))
    gradients.data = data
    assert found == train_pb2.TrainRequest(gradients=gradients)
    parameters = train_pb2.Parameters(sequence=3, steps=1, receipt=train_pb2.Receipt(step=9, gradient_norm=0.5))
    answer = train_pb2.TrainResponse.FromString(parameters_response(parameters, values))
    parameters.data = data
    assert answer == train_pb2.TrainResponse(parameters=parameters)


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
