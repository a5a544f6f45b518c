"""The worker's copy of the parameters where replies are INT8 differences."""

from __future__ import annotations

import numpy as np

from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.encoding import decode
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.int8 import Blocks, Floats, array_of, decode_piece, rows_of
from gradwire.wire.layout import Range

_FULL = np.dtype("<f4")


class DeltaCopy:
    """What this worker holds, as the server counts on it: a float32 vector beside ``Run.params``, which may be newer,
    because they were read anew, or be changed by whoever owns them.

    The server begins every stream with full values.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._held = np.empty(blocks.elements, np.float32)
        self._known = np.zeros(blocks.count, np.bool_)

    def forget(self) -> None:
        """Nothing that was sent before counts any more."""
        self._known[:] = False

    @property
    def held(self) -> Floats:
        """``[elements]``; anything where nothing has been sent."""
        return self._held

    def take(self, message: train_pb2.Parameters, data: bytes | memoryview) -> Floats:
        """The new values of the elements from ``message.offset`` on, ``[length]``; they share this copy's memory.

        ``data`` is the message's data. Raises InvalidSlice for malformed data, ProtocolViolation for a difference to
        what has never been sent.
        """
        if message.encoding != run_pb2.ENCODING_INT8:
            values = decode(data, _FULL)[0]
            part = Range(message.offset, message.offset + len(values))
            held = self._held[part.start : part.stop]
            held[:] = values
            first, last = self._blocks.before(part.start), self._blocks.before(part.stop)
            if self._blocks.start(first) == part.start:
                self._known[first:last] = True
            return held
        encoded = array_of(data, 1)
        part = self._blocks.part_of(message.offset, encoded.shape[1])
        span = self._blocks.span(part)
        if not self._known[span.start : span.stop].all():
            raise ProtocolViolation(
                f"the server sent elements {part.start}..{part.stop} as differences before it had sent their values",
                applied=None,
            )
        rows = rows_of(encoded, span)
        held = self._held[part.start : part.stop]
        decoded = np.empty(max((piece.number * piece.length for piece in self._blocks.pieces(span)), default=0), _FULL)
        with np.errstate(all="ignore"):
            for piece in self._blocks.pieces(span):
                difference = decoded[: piece.number * piece.length]
                decode_piece(rows, piece, difference[None])
                held[piece.columns] += difference
        return held
