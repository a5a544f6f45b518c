"""The worker's copy of the parameters under INT8 answers."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwire.client.encodings.delta_copy import DeltaCopy
from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.errors import InvalidSlice, ProtocolViolation
from gradwire.wire.int8 import Blocks
from gradwire.wire.layout import Layout

BLOCKS = Blocks(Layout([[("w", (300,)), ("b", (2,))]]))


@pytest.fixture
def copy() -> DeltaCopy:
    """A copy that has been sent all of its elements: ones."""
    made = DeltaCopy(BLOCKS)
    take(made, 0, np.ones(302, np.float32).tobytes(), run_pb2.ENCODING_FLOAT32)
    return made


def take(copy: DeltaCopy, offset: int, data: bytes, encoding: run_pb2.Encoding.ValueType) -> list[float]:
    message = train_pb2.Parameters(offset=offset, steps=1, encoding=encoding)
    values: list[float] = copy.take(message, memoryview(data)).tolist()
    return values


def test_differences_are_added_to_what_was_sent_before(copy: DeltaCopy) -> None:
    tail = struct.pack("<f44b", 0.5, *range(44))
    assert take(copy, 256, tail, run_pb2.ENCODING_INT8) == [1 + 0.5 * code for code in range(44)]
    assert take(copy, 256, tail, run_pb2.ENCODING_INT8) == [1.0 + code for code in range(44)]
    assert copy.held[:256].tolist() == [1.0] * 256
    assert copy.held[300:].tolist() == [1.0] * 2


def test_values_replace_it(copy: DeltaCopy) -> None:
    assert take(copy, 300, struct.pack("<2f", 5, 6), run_pb2.ENCODING_FLOAT32) == [5.0, 6.0]
    assert take(copy, 300, struct.pack("<f2b", 1, 1, -1), run_pb2.ENCODING_INT8) == [6.0, 5.0]


@pytest.mark.parametrize("offset", [0, 300])
def test_a_difference_from_what_was_never_sent_is_refused(copy: DeltaCopy, offset: int) -> None:
    copy.forget()
    data = bytes(260) if offset == 0 else bytes(6)
    with pytest.raises(ProtocolViolation, match="as differences before it had sent their values"):
        take(copy, offset, data, run_pb2.ENCODING_INT8)
    take(copy, offset, bytes(1024 if offset == 0 else 8), run_pb2.ENCODING_FLOAT32)
    assert set(take(copy, offset, data, run_pb2.ENCODING_INT8)) == {0.0}


def test_a_part_of_a_block_is_not_the_block(copy: DeltaCopy) -> None:
    copy.forget()
    take(copy, 0, bytes(4 * 100), run_pb2.ENCODING_FLOAT32)
    take(copy, 100, bytes(4 * 100), run_pb2.ENCODING_FLOAT32)
    with pytest.raises(ProtocolViolation):
        take(copy, 0, bytes(260), run_pb2.ENCODING_INT8)


def test_malformed_differences_are_refused(copy: DeltaCopy) -> None:
    with pytest.raises(InvalidSlice, match="no whole number of INT8 blocks"):
        take(copy, 0, bytes(259), run_pb2.ENCODING_INT8)
    with pytest.raises(InvalidSlice, match="element 5 is no boundary"):
        take(copy, 5, bytes(260), run_pb2.ENCODING_INT8)


def test_values_may_be_cut_inside_a_block(copy: DeltaCopy) -> None:
    copy.forget()
    for start, stop in ((100, 302), (0, 100)):
        take(copy, start, bytes(4 * (stop - start)), run_pb2.ENCODING_FLOAT32)
    assert take(copy, 0, bytes(260), run_pb2.ENCODING_INT8) == [0.0] * 256


@given(st.lists(st.tuples(st.integers(0, 302), st.integers(0, 302)), max_size=8), st.sampled_from([0, 256, 300]))
def test_it_knows_which_elements_were_sent(parts: list[tuple[int, int]], offset: int) -> None:
    copy = DeltaCopy(BLOCKS)
    sent = np.zeros(302, bool)
    for a, b in parts:
        start, stop = min(a, b), max(a, b)
        take(copy, start, bytes(4 * (stop - start)), run_pb2.ENCODING_FLOAT32)
        sent[start:stop] = True
    size = {0: 256, 256: 44, 300: 2}[offset]
    if sent[offset : offset + size].all():
        take(copy, offset, bytes(4 + size), run_pb2.ENCODING_INT8)
    else:
        with pytest.raises(ProtocolViolation):
            take(copy, offset, bytes(4 + size), run_pb2.ENCODING_INT8)
