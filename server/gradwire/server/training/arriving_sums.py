"""Squares of gradients that a client writes into shared memory, summed while it writes the next ones."""

from __future__ import annotations

import numpy as np

from gradwire.server.devices.chunks import NORM_CHUNK, range_of, whole_chunks
from gradwire.server.engine.gradients import Sums
from gradwire.server.engine.run import Run
from gradwire.server.memory.shared_memory import SharedMemory
from gradwire.wire.layout import Range


class ArrivingSums:
    """Of one vector after another, whose elements all have their place there. The same bits as if they were summed when
    all have come: only whole chunks are."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._elements = run.spec.layout.elements
        self._sums = np.zeros((-(-self._elements // NORM_CHUNK), 1))
        self._summed = 0  # chunks, from the first one on
        self._arrived = 0  # elements, from the first one on

    def begin(self) -> None:
        """With the next vector."""
        self._sums = np.zeros_like(self._sums)
        self._summed = self._arrived = 0

    def note(self, place: Range) -> None:
        """Those have arrived; what does not follow what is there waits for the end."""
        if place.start == self._arrived:
            self._arrived = place.stop

    def add(self, memory: SharedMemory) -> None:
        """Sums what has arrived. Bulk work."""
        first, stop = whole_chunks(Range(self._summed * NORM_CHUNK, self._arrived), self._elements)
        if first < stop:
            run = self._run
            part = range_of(first, stop, self._elements)  # no more: the memory may be smaller than a vector
            values = run.device.stage(memory.gradient_values(part, run.spec.dtype), run.spec.dtype)
            self._sums[first:stop] = run.device.chunk_sums(values, 0, [part], part.start)
            self._summed = stop

    def whole(self, memory: SharedMemory) -> Sums:
        """As `Device.chunk_sums` of a row, once all has arrived. Bulk work."""
        self._arrived = self._elements
        self.add(memory)
        return self._sums
