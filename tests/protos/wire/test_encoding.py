"""Bytes on the wire <-> arrays: every encoding, every kind of number, blocks of K steps."""

from __future__ import annotations

import struct
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwire.v1 import run_pb2
from gradwire.wire.encoding import decode, dtype_of, encode, state_dtype, wire_dtype
from gradwire.wire.errors import InvalidSlice, InvalidSpec, ProtocolViolation

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
FLOAT16 = np.dtype(np.float16)
WIRE = {
    run_pb2.ENCODING_FLOAT32: FLOAT32,
    run_pb2.ENCODING_FLOAT64: FLOAT64,
    run_pb2.ENCODING_BFLOAT16: BFLOAT16,
    run_pb2.ENCODING_FLOAT16: FLOAT16,
}
each_wire = pytest.mark.parametrize("wire", WIRE.values(), ids=str)
each_state = pytest.mark.parametrize("state", [FLOAT32, FLOAT64], ids=str)


def through(values: npt.ArrayLike, wire: np.dtype[Any], state: np.dtype[Any] = FLOAT64) -> npt.NDArray[np.float64]:
    """What arrives of ``values``, as float64."""
    array = np.asarray(values, state)
    found: npt.NDArray[np.float64] = decode(encode(array, wire), wire)[0].astype(np.float64)
    return found


def test_every_encoding_of_the_contract_is_known() -> None:
    for encoding in run_pb2.Encoding.values():
        if encoding not in (run_pb2.ENCODING_UNSPECIFIED, run_pb2.ENCODING_INT8):
            assert wire_dtype(encoding, FLOAT32) == WIRE[encoding]


def test_int8_is_refused_where_whole_vectors_are_sent() -> None:
    with pytest.raises(ProtocolViolation, match="INT8 is an encoding of gradients"):
        wire_dtype(run_pb2.ENCODING_INT8, FLOAT32)


@each_state
def test_unspecified_is_the_exact_encoding_of_the_run(state: np.dtype[Any]) -> None:
    assert wire_dtype(run_pb2.ENCODING_UNSPECIFIED, state) == state
    assert state_dtype(dtype_of(state)) == state


def test_unspecified_dtype_is_float32() -> None:
    assert state_dtype(run_pb2.DTYPE_UNSPECIFIED) == FLOAT32


def test_unknown_numbers_of_a_newer_peer_are_refused() -> None:
    unknown: Any = 99
    with pytest.raises(ProtocolViolation, match="encoding 99 is not known"):
        wire_dtype(unknown, FLOAT32)
    with pytest.raises(InvalidSpec, match="dtype 99 is not known"):
        state_dtype(unknown)


@each_wire
def test_bytes_are_little_endian_and_dense(wire: np.dtype[Any]) -> None:
    expected = {
        FLOAT32: struct.pack("<2f", 1.0, -2.5),
        FLOAT64: struct.pack("<2d", 1.0, -2.5),
        FLOAT16: struct.pack("<2e", 1.0, -2.5),
        # bfloat16 is the upper half of a float32
        BFLOAT16: struct.pack("<f", 1.0)[2:] + struct.pack("<f", -2.5)[2:],
    }
    assert encode(np.array([1.0, -2.5], np.float32), wire) == expected[wire]
    assert encode(np.array([1.0, -2.5], ">f8"), wire) == expected[wire]


@each_wire
@each_state
def test_special_values_survive(wire: np.dtype[Any], state: np.dtype[Any]) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0], state)
    found = through(values, wire, state)
    assert np.array_equal(found, values.astype(np.float64), equal_nan=True)
    assert np.array_equal(np.signbit(found[1:]), np.signbit(values[1:]))


@each_wire
def test_every_kind_of_nan_stays_nan(wire: np.dtype[Any]) -> None:
    """Signalling ones included, and without a warning, which would be an error here."""
    narrow = np.array([0x7F800001, 0x7FC00000, 0xFF800001, 0x7FFFFFFF], np.uint32).view(np.float32)
    wide = np.array([0x7FF0000000000001, 0x7FF8000000000000, 0xFFF0000000000001], np.uint64).view(np.float64)
    assert np.isnan(decode(encode(narrow, wire), wire)).all()
    assert np.isnan(decode(encode(wide, wire), wire)).all()


@each_wire
def test_subnormals_survive(wire: np.dtype[Any]) -> None:
    smallest = {FLOAT32: 2.0**-149, FLOAT64: 2.0**-1074, FLOAT16: 2.0**-24, BFLOAT16: 2.0**-133}[wire]
    values = [smallest, -smallest, 3 * smallest, 5 * smallest]
    assert through(values, wire).tolist() == values
    assert through([0.4 * smallest if smallest > 2.0**-1074 else 0.0], wire).tolist() == [0.0]


@pytest.mark.parametrize(
    ("wire", "bits", "largest"),
    [(FLOAT16, 10, 65504.0), (BFLOAT16, 7, 2.0**128 - 2.0**120), (FLOAT32, 23, 2.0**128 - 2.0**104)],
    ids=["float16", "bfloat16", "float32"],
)
def test_rounds_to_nearest_even_and_overflows_to_infinity(wire: np.dtype[Any], bits: int, largest: float) -> None:
    unit = 2.0**-bits  # spacing above 1
    assert through([1 + unit / 2, 1 + 3 * unit / 2, 1 + 0.51 * unit, 1 + 0.49 * unit], wire).tolist() == [
        1.0,
        1 + 2 * unit,
        1 + unit,
        1.0,
    ]
    spacing = largest * unit / (2 - unit)  # between the largest finite number and what would follow it
    halfway = largest + spacing / 2
    assert through([largest, np.nextafter(halfway, 0), halfway, -halfway], wire).tolist() == [
        largest,
        largest,
        np.inf,
        -np.inf,
    ]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_float64_rounds_once_on_its_way_to_bfloat16(sign: float) -> None:
    """By way of float32 a value just above the middle of two bfloat16 numbers would go to the wrong one."""
    numbers = np.arange(0x7F80, dtype=np.uint16).view(BFLOAT16).astype(np.float64)  # all of them, subnormals too
    low, high = numbers[:-1], numbers[1:]
    middle = (low + high) / 2
    even = np.where(np.arange(middle.size) % 2 == 0, low, high)
    for values, expected in (
        (middle, even),
        (np.nextafter(middle, np.inf), high),
        (np.nextafter(middle, 0.0), low),
        (numbers, numbers),
    ):
        assert np.array_equal(through(sign * values, BFLOAT16), sign * expected)


@settings(max_examples=200)
@given(st.lists(st.floats(width=64), min_size=1, max_size=20), st.sampled_from(list(WIRE.values())))
def test_a_second_trip_changes_nothing(numbers: list[float], wire: np.dtype[Any]) -> None:
    once = through(numbers, wire)
    assert np.array_equal(through(once, wire), once, equal_nan=True)


@settings(max_examples=200)
@given(st.lists(st.floats(width=32), min_size=1, max_size=20), st.sampled_from([FLOAT32, FLOAT64]))
def test_float32_is_exact_in_float32_and_float64(numbers: list[float], wire: np.dtype[Any]) -> None:
    values = np.array(numbers, np.float32)
    assert np.array_equal(decode(encode(values, wire), wire)[0].astype(np.float32), values, equal_nan=True)


@each_wire
@pytest.mark.parametrize(("steps", "length"), [(1, 5), (2, 3), (7, 1), (1000, 2), (3, 0)])
def test_blocks_are_row_after_row(wire: np.dtype[Any], steps: int, length: int) -> None:
    values = (np.arange(steps * length) % 200).reshape(steps, length).astype(np.float32)
    data = encode(values, wire)
    assert len(data) == steps * length * wire.itemsize
    found = decode(data, wire, steps)
    assert found.shape == (steps, length)
    assert np.array_equal(found.astype(np.float32), values)
    assert encode(values[-1], wire) == data[len(data) - length * wire.itemsize :]


@each_wire
def test_any_strides_can_be_encoded(wire: np.dtype[Any]) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (values.T, values[:, ::2], values[::-1], values[1:3, 1:2], values.reshape(2, 3, 4).transpose(2, 0, 1)):
        assert encode(view, wire) == encode(np.ascontiguousarray(view), wire)


@each_wire
def test_data_that_is_no_whole_number_of_rows_is_refused(wire: np.dtype[Any]) -> None:
    row = 3 * wire.itemsize
    for size in (1, wire.itemsize - 1, wire.itemsize, row - 1, row + wire.itemsize, 2 * row + 1):
        with pytest.raises(InvalidSlice, match=f"no multiple of 3 steps x {wire.itemsize} bytes") as caught:
            decode(b"\0" * size, wire, 3)
        assert caught.value.metadata["expected_multiple"] == str(row)


def test_decoding_shares_memory_and_is_read_only() -> None:
    values = decode(b"\0" * 8, FLOAT32)
    assert not values.flags.writeable
    assert not values.flags.owndata
