"""Parameters as INT8 differences from what the worker holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire.server.encodings.quantizing import encode_differences
from gradwire.server.memory.budget import MemoryBudget
from gradwire.wire.encoding import SLICE_BYTES
from gradwire.wire.int8 import SLICE_ELEMENTS, Blocks, Bytes, Floats, empty_rows
from gradwire.wire.layout import Range


class Part(NamedTuple):
    """A part of a reply in its encoding: ``data`` is ``[1, row_bytes]`` of INT8, or float32 values ``[1, length]``."""

    offset: int
    data: Bytes | Floats
    delta: bool
    """Whether ``data`` is INT8, to be added to what the worker holds."""


class DeltaBaseline:
    """What one worker holds of a run's parameters, and so what its next reply may leave out.

    A reply is ``quantize(new - baseline)``, and the baseline advances by what a reader decodes, in the same float32
    operations: it equals the worker's copy bit for bit, and what a reply has lost is part of the next one. Blocks that
    the worker has not been sent since the last `drop` go in full, and so do differences that are not finite.

    A step that fails after some of its replies have left ends the stream, and with it this object: so it may advance
    reply by reply.

    Args:
        budget: where its memory is counted, until `release`. Raises MemoryLimitExceeded.
        purpose: what that memory is for, in words.
    """

    def __init__(self, blocks: Blocks, budget: MemoryBudget, purpose: str) -> None:
        self._blocks = blocks
        self._memory = budget.reserve(4 * blocks.elements + blocks.count + blocks.nbytes, purpose)
        self._held = np.empty(blocks.elements, np.float32)
        self._known = np.zeros(blocks.count, np.bool_)
        """Blocks that the worker holds as ``_held`` says."""

    def held(self, part: Range) -> Floats:
        """A copy of what the worker holds of ``part``; anything where it has not been sent."""
        return self._held[part.start : part.stop].copy()

    def drop(self) -> None:
        """The worker may hold anything: what it is sent next is sent in full."""
        self._known[:] = False

    def release(self) -> None:
        """Frees the memory; the object is of no further use."""
        self._held = self._held[:0]
        self._memory.release()

    def encode(self, offset: int, values: npt.NDArray[np.floating[Any]]) -> Iterator[Part]:
        """One row of new parameters, ``[length]``, of the elements from ``offset`` on, as parts in order."""
        stop = offset + len(values)
        first = self._blocks.before(offset)
        first += self._blocks.start(first) < offset
        last = self._blocks.before(stop)
        if first >= last:  # no whole block
            yield from self._full(Range(offset, stop), values)
            return
        head, tail = self._blocks.start(first), self._blocks.start(last)
        if offset < head:
            yield from self._full(Range(offset, head), values[: head - offset])
        known = self._known[first:last].copy()
        edges = [0, *(np.flatnonzero(known[1:] != known[:-1]) + 1).tolist(), last - first]
        for begin, end in itertools.pairwise(edges):
            whole = Range(self._blocks.start(first + begin), self._blocks.start(first + end))
            for part in self._blocks.tiles((whole,), SLICE_ELEMENTS):
                new = values[part.start - offset : part.stop - offset]
                delta = self._delta(part, new) if known[begin] else None
                if delta is None:
                    yield from self._full(part, new)
                else:
                    yield Part(part.start, delta, delta=True)
        if tail < stop:
            yield from self._full(Range(tail, stop), values[tail - offset :])

    def _full(self, part: Range, values: npt.NDArray[np.floating[Any]]) -> Iterator[Part]:
        held = self._held[part.start : part.stop]
        with np.errstate(all="ignore"):  # a float64 beyond float32's range becomes an infinity
            held[:] = values
        first, last = self._blocks.before(part.start), self._blocks.before(part.stop)
        if self._blocks.start(first) == part.start:
            self._known[first:last] = True
        length = SLICE_BYTES // held.itemsize
        for start in range(0, len(held), length):
            yield Part(part.start + start, held[None, start : start + length].copy(), delta=False)

    def _delta(self, part: Range, values: npt.NDArray[np.floating[Any]]) -> Bytes | None:
        """``values`` as INT8 differences; None where one of them is not finite: the baseline may then hold anything."""
        span = self._blocks.span(part)
        rows = empty_rows(1, part, span)
        held = self._held[part.start : part.stop]
        finite = encode_differences(values, held, self._blocks.boundaries(span), rows.scales[0], rows.codes[0])
        return rows.data if finite else None
