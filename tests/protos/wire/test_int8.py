"""INT8 blocks: the bytes are what the contract says, whoever writes them and wherever a vector is cut."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwire.wire.errors import InvalidSlice
from gradwire.wire.int8 import BLOCK_ELEMENTS, Blocks, Quantizer, array_of, decode_rows, empty_rows, rows_of
from gradwire.wire.layout import Layout, Range

Floats = npt.NDArray[np.float32]

sizes = st.lists(st.sampled_from([0, 1, 3, 64, 255, 256, 257, 512, 700, 70_000]), min_size=1, max_size=6)


def layout_of(*tensor_sizes: int) -> Layout:
    return Layout([[(f"t{index}", (size,)) for index, size in enumerate(tensor_sizes)]])


def blocks_of(*tensor_sizes: int) -> Blocks:
    return Blocks(layout_of(*tensor_sizes))


def encode(blocks: Blocks, part: Range, values: Floats) -> bytes:
    """``values``, ``[K, length]``, of the elements ``part``."""
    span = blocks.span(part)
    rows = empty_rows(len(values), part, span)
    quantizer = Quantizer()
    with np.errstate(all="ignore"):
        for row in range(len(values)):
            for piece in blocks.pieces(span):
                shape = piece.number, piece.length
                codes = rows.codes[row, piece.columns].reshape(shape)
                quantizer.encode(values[row, piece.columns].reshape(shape), rows.scales[row, piece.blocks], codes)
    return rows.data.tobytes()


def decode(blocks: Blocks, offset: int, data: bytes, steps: int = 1) -> Floats:
    array = array_of(data, steps)
    span = blocks.span(blocks.part_of(offset, array.shape[1]))
    return decode_rows(blocks, span, rows_of(array, span))


def read_by_the_contract(data: bytes, lengths: list[int]) -> list[float]:
    """One row, read as ``run.proto`` describes it and with nothing of ours."""
    scales = struct.unpack_from(f"<{len(lengths)}f", data)
    codes = iter(struct.unpack_from(f"<{sum(lengths)}b", data, 4 * len(lengths)))
    return [
        float(np.float32(scale) * np.float32(next(codes)))
        for scale, length in zip(scales, lengths, strict=True)
        for _ in range(length)
    ]


def boundaries(tensor_sizes: list[int]) -> list[int]:
    """First elements of all blocks, and the vector's end, element by element."""
    found, start = [], 0
    for size in tensor_sizes:
        found += [start + at for at in range(0, size, BLOCK_ELEMENTS)]
        start += size
    return [*found, start]


@given(sizes)
def test_blocks_are_256_elements_of_one_tensor(tensor_sizes: list[int]) -> None:
    blocks = blocks_of(*tensor_sizes)
    starts = boundaries(tensor_sizes)
    assert [blocks.start(index) for index in range(blocks.count + 1)] == starts
    assert blocks.longest == max(np.diff(starts), default=0)
    assert all(blocks.before(start) == index for index, start in enumerate(starts))


@given(sizes, st.data())
def test_pieces_cover_a_slice_in_order(tensor_sizes: list[int], data: st.DataObject) -> None:
    blocks, starts = blocks_of(*tensor_sizes), boundaries(tensor_sizes)
    first = data.draw(st.integers(0, blocks.count))
    last = data.draw(st.integers(first, blocks.count))
    column, block = 0, 0
    for piece in blocks.pieces(Range(first, last)):
        assert (piece.columns.start, piece.blocks.start) == (column, block)
        assert piece.blocks.stop - piece.blocks.start == piece.number > 0
        assert piece.columns.stop - piece.columns.start == piece.number * piece.length
        lengths = np.diff(starts)[first + block : first + piece.blocks.stop]
        assert set(lengths.tolist()) == {piece.length}
        column, block = piece.columns.stop, piece.blocks.stop
    assert (column, block) == (starts[last] - starts[first], last - first)


@given(sizes, st.data(), st.integers(1, 3))
def test_the_size_of_a_row_says_which_elements_it_holds(tensor_sizes: list[int], data: st.DataObject, k: int) -> None:
    blocks, starts = blocks_of(*tensor_sizes), boundaries(tensor_sizes)
    first = data.draw(st.integers(0, blocks.count))
    last = data.draw(st.integers(first, blocks.count))
    part = Range(starts[first], starts[last])
    row_bytes = blocks.row_bytes(part)
    assert row_bytes == part.stop - part.start + 4 * (last - first)
    assert blocks.part_of(part.start, row_bytes) == part
    if row_bytes:
        with pytest.raises(InvalidSlice):
            blocks.part_of(part.start, row_bytes - 1)
    for wrong in (row_bytes + 1, row_bytes + 4):
        try:
            found = blocks.part_of(part.start, wrong)
        except InvalidSlice:
            continue
        assert blocks.row_bytes(found) == wrong


@pytest.mark.parametrize(
    ("offset", "row_bytes", "expected"),
    [
        (1, 260, "element 1 is no boundary"),
        (0, 259, "no whole number of INT8 blocks.*260"),
        (0, 4, "no whole number"),
        (0, 1, "no whole number"),
        (400, 2**40, "do not lie in the flat vector"),
        (411, 5, "do not lie"),
        (412, 5, "no boundary"),
        (2**63, 5, "no boundary"),
    ],
)
def test_malformed_slices_are_refused_in_words(offset: int, row_bytes: int, expected: str) -> None:
    """Tensors of 400 and 11 elements: blocks of 256, 144 and 11."""
    blocks = blocks_of(400, 11)
    with pytest.raises(InvalidSlice, match=expected):
        blocks.part_of(offset, row_bytes)


def test_rows_of_unequal_size_are_refused() -> None:
    with pytest.raises(InvalidSlice, match=r"7 bytes.*multiple of 2 steps"):
        array_of(bytes(7), 2)


@given(sizes, st.integers(1, 3), st.integers(0, 2**32), st.floats(-30, 30))
def test_bytes_are_what_the_contract_says(tensor_sizes: list[int], steps: int, seed: int, exponent: float) -> None:
    blocks = blocks_of(*tensor_sizes)
    values = np.random.default_rng(seed).standard_normal((steps, blocks.elements), np.float32) * np.float32(
        10.0**exponent
    )
    data = encode(blocks, Range(0, blocks.elements), values)
    lengths = np.diff(boundaries(tensor_sizes)).tolist()
    assert len(data) == steps * (blocks.elements + 4 * len(lengths))
    decoded = decode(blocks, 0, data, steps)
    for row in range(steps):
        row_bytes = len(data) // steps
        if blocks.elements < 3_000:
            assert decoded[row].tolist() == read_by_the_contract(data[row * row_bytes :][:row_bytes], lengths)
        start = 0
        for length in lengths:
            block = values[row, start : start + length]
            error = np.abs(block.astype(np.float64) - decoded[row, start : start + length])
            assert error.max() <= np.abs(block).max() / 254 * (1 + 1e-4)
            start += length


@given(st.sampled_from([[700], [400, 11, 256, 1, 0, 513], [1] * 300, [70_000, 3]]), st.data())
def test_cuts_make_no_difference(tensor_sizes: list[int], data: st.DataObject) -> None:
    blocks, starts = blocks_of(*tensor_sizes), boundaries(tensor_sizes)
    values = np.random.default_rng(1).standard_normal((2, blocks.elements), np.float32)
    whole = decode(blocks, 0, encode(blocks, Range(0, blocks.elements), values), 2)
    cuts = sorted({0, blocks.elements, *data.draw(st.lists(st.sampled_from(starts), max_size=5))})
    parts = [Range(a, b) for a, b in itertools.pairwise(cuts)]
    pieces = [decode(blocks, p.start, encode(blocks, p, values[:, p.start : p.stop]), 2) for p in parts]
    assert np.array_equal(np.concatenate(pieces, axis=1), whole)


@given(sizes, st.integers(1, 100_000))
def test_tiles_cut_between_blocks(tensor_sizes: list[int], elements: int) -> None:
    blocks, starts = blocks_of(*tensor_sizes), boundaries(tensor_sizes)
    parts = list(blocks.tiles([Range(0, blocks.elements)] if blocks.elements else [], elements))
    assert [part.start for part in parts] + [blocks.elements] == [0, *(part.stop for part in parts)]
    for part in parts:
        assert part.start in starts
        assert part.stop - part.start <= max(elements, BLOCK_ELEMENTS)


@pytest.mark.parametrize(
    "largest",
    [0.0, 1e-45, 1e-38, 1.5e-36, 2e-36, 1.0, 3e38, float(np.finfo(np.float32).max)],
)
def test_every_magnitude_is_decoded_to_a_finite_value_near_it(largest: float) -> None:
    blocks = blocks_of(4)
    values = np.array([[largest, -largest, largest / 2, 0]], np.float32)
    decoded = decode(blocks, 0, encode(blocks, Range(0, 4), values))
    assert np.isfinite(decoded).all()
    assert decoded[0, 3] == 0
    largest = float(values.max())
    tiny = largest < 127 * float(np.finfo(np.float32).tiny)
    bound = largest if tiny else largest / 254 * (1 + 1e-4)
    assert np.abs(values.astype(np.float64) - decoded).max() <= bound


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_that_is_not_finite_says_so_and_its_neighbours_are_well(bad: float) -> None:
    blocks = blocks_of(700)
    values = np.ones((1, 700), np.float32)
    values[0, 300] = bad
    data = encode(blocks, Range(0, 700), values)
    scales = struct.unpack_from("<3f", data)
    assert [np.isnan(scale) for scale in scales] == [False, True, False]
    assert set(data[12 + 256 : 12 + 512]) == {0}
    decoded = decode(blocks, 0, data)
    assert np.isnan(decoded[0, 256:512]).all()
    assert np.allclose(decoded[0, :256], 1)
    assert np.allclose(decoded[0, 512:], 1)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_any_scale_that_is_not_finite_decodes_to_nan(scale: float) -> None:
    data = struct.pack("<f4b", scale, 0, 1, -1, 127)
    assert np.isnan(decode(blocks_of(4), 0, data)).all()


def test_codes_that_we_never_send_are_read_as_the_contract_says() -> None:
    data = struct.pack("<f3b", -0.5, -128, 127, 0)
    assert decode(blocks_of(3), 0, data).tolist() == [[64.0, -63.5, 0.0]]


def test_a_layout_without_elements_has_no_blocks() -> None:
    blocks = blocks_of(0, 0)
    assert (blocks.count, blocks.longest) == (0, 0)
    assert list(blocks.pieces(Range(0, 0))) == []
    assert blocks.part_of(0, 0) == Range(0, 0)
    with pytest.raises(InvalidSlice):
        blocks.part_of(0, 5)
