"""Gradients that lie where the client has written them, in shared memory, and are computed from there: no copy is made.

Their squares are summed while the client writes the next ones: when the last one is there the update is left, and next
to nothing beside it.

Client and server are of one user. What the client changes meanwhile is its own run's loss: any bytes are numbers, so
the step is whole, and nothing else is read or written for it. What must be the same each time that it is read is copied
first: a block that is journaled, clipped, or some of whose steps may be left out.
"""

from __future__ import annotations

import numpy as np

from gradwire.server.encodings.decoders import Decoder
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import NonFinitePolicy
from gradwire.server.memory.shared_memory import SharedSlice
from gradwire.server.training.arriving_sums import ArrivingSums
from gradwire.server.training.incoming_block import ArrivedSlice


class LyingGradients:
    """The slices of one block, or contribution, after another, as long as all of it lie where their elements have their
    place in a vector.

    Args:
        clips: whether each gradient is clipped by itself.
    """

    def __init__(self, run: Run, decoder: Decoder, *, clips: bool) -> None:
        spec = run.spec
        self._itemsize = spec.dtype.itemsize
        self._possible = (
            decoder.dense == spec.dtype
            and not clips
            and spec.non_finite_policy is not NonFinitePolicy.SKIP
            and _reads_where_it_lies(run)
        )
        self._open = False
        self._slices: list[ArrivedSlice] = []
        self.sums = ArrivingSums(run)
        """Of what lies there."""

    @property
    def whole(self) -> bool:
        """Whether what has arrived lies there. The first slice that does not ends that."""
        return bool(self._slices)

    def begin(self, *, possible: bool) -> None:
        """With the next block. ``possible``: one that may lie there, one step of all elements."""
        self._open = self._possible and possible
        self._slices = []

    def take(self, arrived: ArrivedSlice) -> bool:
        """Whether a slice may stay where it lies; False: none of its block may, see `give_up`. Of what stays the client
        is not told that it was taken before the block is answered."""
        data = arrived.data
        self._open = (
            self._open
            and isinstance(data, SharedSlice)
            and not data.wanted  # the client writes something else there as soon as it is told that this was taken
            and data.position == arrived.place.start * self._itemsize
        )
        if self._open:
            if not self._slices:
                self.sums.begin()
            self.sums.note(arrived.place)
            self._slices.append(arrived)
        return self._open

    def give_up(self) -> list[ArrivedSlice]:
        """What has stayed so far, to be copied now."""
        slices, self._slices = self._slices, []
        return slices


def _reads_where_it_lies(run: Run) -> bool:
    """Whether the run's device computes from memory of the host."""
    values = np.zeros((1, 1), run.spec.dtype)
    return run.device.stage(values, run.spec.dtype) is values
