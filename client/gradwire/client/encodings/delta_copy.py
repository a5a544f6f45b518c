"""The worker's copy of the parameters where replies are INT8 differences."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np

from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.encoding import decode
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.int8 import Blocks, Bytes, Floats, array_of, decode_piece, rows_of
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
        self._known = _Ranges()

    def forget(self) -> None:
        """Nothing that was sent before counts any more."""
        self._known = _Ranges()

    @property
    def held(self) -> Floats:
        """``[elements]``; anything where nothing has been sent."""
        return self._held

    def take(self, message: train_pb2.Parameters, data: bytes | memoryview | Bytes) -> Floats:
        """The new values of the elements from ``message.offset`` on, ``[length]``; they share this copy's memory.

        ``data`` is the message's data. Raises InvalidSlice for malformed data, ProtocolViolation for a difference to
        what has never been sent.
        """
        if message.encoding != run_pb2.ENCODING_INT8:
            values = decode(data, _FULL)[0]
            part = Range(message.offset, message.offset + len(values))
            held = self._held[part.start : part.stop]
            held[:] = values
            self._known.add(part)
            return held
        encoded = array_of(data, 1)
        part = self._blocks.part_of(message.offset, encoded.shape[1])
        span = self._blocks.span(part)
        if part not in self._known:
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


class _Ranges:
    """A set of elements, as ranges that do not touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, part: Range) -> None:
        i, j = bisect_left(self._stops, part.start), bisect_right(self._starts, part.stop)
        if i < j:  # with these it becomes one
            part = Range(min(part.start, self._starts[i]), max(part.stop, self._stops[j - 1]))
        self._starts[i:j] = [part.start]
        self._stops[i:j] = [part.stop]

    def __contains__(self, part: Range) -> bool:
        i = bisect_right(self._starts, part.start) - 1
        return part.start == part.stop or (i >= 0 and part.stop <= self._stops[i])
