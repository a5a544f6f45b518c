"""Gradients as INT8, with what the encoding has lost of one gradient added to the next."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from gradwire.client.encodings import flat_vector
from gradwire.client.encodings.block import BlockData
from gradwire.wire.encoding import MAX_ROW_BYTES, Array
from gradwire.wire.int8 import SLICE_ELEMENTS, Blocks, Bytes, Floats, Quantizer, Rows, empty_rows
from gradwire.wire.layout import Layout, Range

_LEAST_ELEMENTS = 2**16
"""Rows are encoded one by one: shorter ones, where a message has room for these, cost more than they carry."""


class ErrorFeedback:
    """What INT8 has lost of the gradients of one run, per element: the residual.

    It advances with `commit` only. `drop` it with every attachment and every refused or skipped step: then the next
    gradient is sent as it is. One more float32 vector, and the bytes of the block that is under way.
    """

    def __init__(self, layout: Layout, blocks: Blocks) -> None:
        self._layout = layout
        self._blocks = blocks
        self._quantizer = Quantizer()
        self._lock = threading.Lock()
        self._residual: Floats | None = None

    @property
    def residual(self) -> Floats | None:
        """``[elements]``, what the committed blocks have lost; None: nothing."""
        return self._residual

    def begin(self, rows: Sequence[Array | None], ranges: Sequence[Range], steps: int) -> EncodedBlock:
        """A block of gradients, ``[steps, size]`` for each tensor in ``ranges``, with the residual added to the first.

        The residual goes into the block, and is back when that is committed.
        """
        residual, self._residual = self._residual, None
        if residual is None:
            residual = np.zeros(self._layout.elements, np.float32)
        return EncodedBlock(self._layout, self._blocks, self._quantizer, self._lock, rows, ranges, steps, residual)

    def commit(self, block: EncodedBlock) -> None:
        """Takes on what ``block``, which the server has applied, has lost."""
        self._residual = block.residual

    def drop(self) -> None:
        """Forgets what has been lost. A block that has begun keeps what was added to it."""
        self._residual = None


class EncodedBlock(BlockData):
    """The slices of one block. Each is encoded once, when it is first asked for: a retry sends the same bytes.

    Several threads may ask: the one that sent on a stream that broke may still be at it, for this block or an earlier
    one. ``lock`` keeps them apart, and is that of the quantizer.
    """

    def __init__(
        self,
        layout: Layout,
        blocks: Blocks,
        quantizer: Quantizer,
        lock: threading.Lock,
        rows: Sequence[Array | None],
        ranges: Sequence[Range],
        steps: int,
        residual: Floats,
    ) -> None:
        self._layout = layout
        self._blocks = blocks
        self._quantizer = quantizer
        self._lock = lock
        self._rows = rows
        self._steps = steps
        self.residual = residual
        self._parts = tuple(blocks.tiles(ranges, _slice_elements(steps)))
        self._encoded: list[Bytes | None] = [None] * len(self._parts)

    @property
    def parts(self) -> Sequence[Range]:
        return self._parts

    def data(self, index: int) -> Bytes:
        with self._lock:
            found = self._encoded[index]
            if found is None:
                found = self._encoded[index] = self._encode(self._parts[index])
            return found

    def _encode(self, part: Range) -> Bytes:
        span = self._blocks.span(part)
        rows = empty_rows(self._steps, part, span)
        residual = self.residual[part.start : part.stop]
        with np.errstate(all="ignore"):  # a float64 beyond float32's range becomes an infinity
            values = flat_vector.gather(self._layout, self._rows, part).astype(np.float32, copy=False)
            for row in range(self._steps):
                self._encode_row(values[row], rows, row, residual, span)
        return rows.data

    def _encode_row(self, values: Floats, rows: Rows, row: int, residual: Floats, span: Range) -> None:
        for piece in self._blocks.pieces(span):
            shape = piece.number, piece.length
            lost = residual[piece.columns].reshape(shape)
            wanted = self._quantizer.room(piece)
            np.add(values[piece.columns].reshape(shape), lost, out=wanted)
            scales = rows.scales[row, piece.blocks]
            codes = rows.codes[row, piece.columns].reshape(shape)
            np.subtract(wanted, self._quantizer.encode(wanted, scales, codes), out=lost)
            finite = np.isfinite(scales)
            if not finite.all():
                lost[~finite] = 0  # else no later gradient of these blocks would be finite


def _slice_elements(steps: int) -> int:
    """Length of a slice of ``steps`` rows."""
    return max(SLICE_ELEMENTS // steps, min(_LEAST_ELEMENTS, MAX_ROW_BYTES // 2 // steps))
