"""INT8 blockwise: 256 elements share one float32 scale. Geometry of the blocks, and values <-> codes.

``gradwire.v1.Encoding.ENCODING_INT8`` defines the bytes. Blocks follow from the layout alone, so that slices may be cut
between any two of them without changing a number.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire.wire.errors import InvalidSlice
from gradwire.wire.layout import Layout, Range

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]
Bytes = npt.NDArray[np.uint8]

BLOCK_ELEMENTS = 256
"""Elements of one tensor that share a scale; a tensor's last block may have fewer."""

SCALE_BYTES = 4

SLICE_ELEMENTS = 2**19
"""Length of our own slices. Their elements take longer to encode than others, so they are not as long as they could be,
and both sides are busy at once."""

_LARGEST_CODE = np.float32(127)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_PIECE_ELEMENTS = 2**16
"""What is worked on at once, so that the few arrays that a piece passes through stay in the cache."""

LARGEST_SCALE: np.float32 = np.nextafter(np.finfo(np.float32).max / _LARGEST_CODE, np.float32(0))
"""127 times this is still finite."""

SMALLEST_SCALE: np.float32 = np.finfo(np.float32).tiny
"""Below it the inverse of a scale may overflow; a block of such tiny values is sent as zeros."""

_SCALE = np.dtype("<f4")


class Piece(NamedTuple):
    """Neighbouring blocks of equal length inside a slice: ``number`` blocks of ``length`` elements."""

    columns: slice
    """Its elements, counted from the slice's first."""
    blocks: slice
    """Its blocks, counted from the slice's first."""
    number: int
    length: int


class Blocks:
    """The blocks of a layout: each tensor, from its first element on, in pieces of BLOCK_ELEMENTS."""

    def __init__(self, layout: Layout) -> None:
        self.elements = layout.elements
        tensors = [tensor for tensor in layout.tensors if tensor.size]
        counts = np.array([-(-tensor.size // BLOCK_ELEMENTS) for tensor in tensors], np.int64)
        first = np.cumsum(counts) - counts
        starts = np.repeat(np.array([tensor.start for tensor in tensors], np.int64), counts)
        starts += BLOCK_ELEMENTS * (np.arange(len(starts)) - np.repeat(first, counts))
        self._starts: npt.NDArray[np.int64] = np.append(starts, layout.elements)
        lengths = np.diff(self._starts)
        # The first block of each run of blocks that have one length.
        self._runs: list[int] = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
        self.longest = int(lengths.max(initial=0))
        """Elements of the longest block."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._starts) - 1

    @property
    def nbytes(self) -> int:
        """Memory of this table."""
        return self._starts.nbytes

    @property
    def widest_row_bytes(self) -> int:
        """Encoded size of one row of the longest block, which no slice can be shorter than."""
        return self.longest + SCALE_BYTES

    def span(self, part: Range) -> Range:
        """The blocks that ``part`` consists of. Raises InvalidSlice where it cuts one."""
        first, last = self.before(part.start), self.before(part.stop)
        for block, element in ((first, part.start), (last, part.stop)):
            if not 0 <= element <= self.elements or self._starts[block] != element:
                raise InvalidSlice(
                    f"INT8 slices consist of whole blocks: element {element} is no boundary of one; expected one "
                    f"of a tensor's first, every {BLOCK_ELEMENTS}th after it, or its end",
                    block_elements=BLOCK_ELEMENTS,
                )
        return Range(first, last)

    def before(self, element: int) -> int:
        """The last block that begins at or before ``element``; `count` for the vector's end."""
        return int(np.searchsorted(self._starts, element, "right")) - 1

    def start(self, block: int) -> int:
        """The first element of a block."""
        return int(self._starts[block])

    def boundaries(self, span: Range) -> npt.NDArray[np.int64]:
        """The first elements of these blocks and the end of the last."""
        return self._starts[span.start : span.stop + 1]

    def row_bytes(self, part: Range) -> int:
        """Encoded size of one row of ``part``."""
        span = self.span(part)
        return part.stop - part.start + SCALE_BYTES * (span.stop - span.start)

    def part_of(self, offset: int, row_bytes: int) -> Range:
        """The elements that a slice at ``offset`` with rows of this size holds. Raises InvalidSlice."""
        if not row_bytes:
            return Range(offset, offset)
        first = self.span(Range(offset, offset)).start
        wanted = offset + row_bytes

        def end(block: int) -> int:
            return self.start(block) + SCALE_BYTES * (block - first)

        last = bisect_left(range(self.count + 1), wanted, first, key=end)
        if last > self.count:
            raise InvalidSlice(
                f"rows of {row_bytes} bytes at element {offset} do not lie in the flat vector, which has "
                f"{self.elements} elements",
                elements=self.elements,
            )
        if end(last) != wanted:
            raise InvalidSlice(
                f"rows of {row_bytes} bytes at element {offset} are no whole number of INT8 blocks; expected for each "
                f"block {SCALE_BYTES} bytes and one for each of its elements, for example "
                f"{end(last) - offset}",
                expected_row_bytes=end(last) - offset,
            )
        return Range(offset, self.start(last))

    def tiles(self, ranges: Sequence[Range], elements: int) -> Iterator[Range]:
        """Cuts ``ranges``, which consist of whole blocks, between blocks, into parts of about ``elements``, or of one
        block where that has more."""
        for part in ranges:
            start = part.start
            while start < part.stop:
                first = self.before(start)
                last = max(self.before(min(start + elements, part.stop)), first + 1)
                yield Range(start, self.start(last))
                start = self.start(last)

    def pieces(self, span: Range) -> Iterator[Piece]:
        """Cuts blocks ``span`` so that each piece has blocks of one length and stays in the cache."""
        origin = self.start(span.start)
        run = bisect_right(self._runs, span.start) - 1
        block = span.start
        while block < span.stop:
            length = self.start(block + 1) - self.start(block)
            stop = min(self._runs[run + 1], span.stop)
            rows = max(1, _PIECE_ELEMENTS // length)
            column = self.start(block) - origin
            while block < stop:
                count = min(rows, stop - block)
                columns = slice(column, column + count * length)
                yield Piece(columns, slice(block - span.start, block - span.start + count), count, length)
                block += count
                column = columns.stop
            run += 1


class Rows(NamedTuple):
    """Encoded rows: ``data`` is ``[K, row_bytes]``, the others are views of it."""

    data: Bytes
    scales: npt.NDArray[np.float32]
    """``[K, blocks]``; where ``row_bytes`` is no multiple of 4, not aligned."""
    codes: Codes
    """``[K, elements]``."""


def rows_of(data: Bytes, span: Range) -> Rows:
    """``data``, ``[K, row_bytes]``, as the rows of these blocks."""
    scale_bytes = SCALE_BYTES * (span.stop - span.start)
    return Rows(data, data[:, :scale_bytes].view(_SCALE), data[:, scale_bytes:].view(np.int8))


def empty_rows(steps: int, part: Range, span: Range) -> Rows:
    """Room for ``steps`` encoded rows of ``part``, which consists of the blocks ``span``."""
    row_bytes = part.stop - part.start + SCALE_BYTES * (span.stop - span.start)
    return rows_of(np.empty((steps, row_bytes), np.uint8), span)


class Quantizer:
    """Arrays that a piece passes through, kept because making them anew costs as much as using them."""

    def __init__(self) -> None:
        self._values, self._work = np.empty((2, _PIECE_ELEMENTS), np.float32)

    def room(self, piece: Piece) -> Floats:
        """``[number, length]`` for the values of a piece; what it held before is gone."""
        return self._values[: piece.number * piece.length].reshape(piece.number, piece.length)

    def encode(self, values: Floats, scales: npt.NDArray[np.float32], codes: Codes) -> Floats:
        """Writes ``values`` ``[blocks, length]`` as scales ``[blocks]`` and codes ``[blocks, length]``.

        Returns what a reader will decode, in an array that the next call uses again: zeros exactly, other finite values
        within half a scale, which is 1/254 of the block's largest magnitude. A block that holds a NaN or an infinity
        gets the scale NaN and decodes to nothing else. Call it under ``np.errstate(all="ignore")``.
        """
        work = self._work[: values.size].reshape(values.shape)
        bits = work.view(np.int32)
        # Magnitudes of floats are ordered as their bits are, NaN last; integers have the faster maximum.
        np.bitwise_and(values.view(np.int32), _MAGNITUDE, out=bits)
        largest = bits.max(axis=1).view(np.float32)
        scale = np.minimum(largest / _LARGEST_CODE, LARGEST_SCALE)
        inverse = np.float32(1) / scale
        inverse[scale < SMALLEST_SCALE] = 0
        np.multiply(values, inverse[:, None], out=work)
        if not largest.max() < np.inf:
            bad = ~(largest < np.inf)
            work[bad] = 0  # no NaN may be cast to an integer
            scale[bad] = np.nan
        np.rint(work, out=work)
        np.copyto(codes, work, casting="unsafe")
        np.multiply(work, scale[:, None], out=work)
        scales[:] = scale
        return work


def decode_rows(blocks: Blocks, span: Range, rows: Rows) -> Floats:
    """The float32 values ``[K, elements]`` of encoded rows: code times scale, NaN where the scale is not finite."""
    out = np.empty(rows.codes.shape, np.float32)
    with np.errstate(all="ignore"):
        for piece in blocks.pieces(span):
            decode_piece(rows, piece, out[:, piece.columns])
    return out


def decode_piece(rows: Rows, piece: Piece, out: Floats) -> None:
    """Writes the values of one piece to ``out``, ``[K, number * length]``. Call it as `Quantizer.encode`."""
    scales = rows.scales[:, piece.blocks]
    scales = np.where(np.isfinite(scales), scales, np.float32(np.nan))
    np.copyto(out, rows.codes[:, piece.columns])
    values = out.reshape(len(rows.data), piece.number, piece.length)
    values *= scales[:, :, None]


def array_of(data: bytes | memoryview | Bytes, steps: int) -> Bytes:
    """``data`` as ``[steps, row_bytes]``, sharing its memory. Raises InvalidSlice where rows are not of equal size."""
    flat: npt.NDArray[Any] = np.frombuffer(data, np.uint8)
    return flat.reshape(steps, row_bytes_of(len(data), steps))


def row_bytes_of(size_bytes: int, steps: int) -> int:
    """The length of the rows that `array_of` finds in so many bytes. Raises InvalidSlice as that does."""
    if size_bytes % steps:
        raise InvalidSlice(
            f"data has {size_bytes} bytes, which is no multiple of {steps} steps", expected_multiple=steps
        )
    return size_bytes // steps
