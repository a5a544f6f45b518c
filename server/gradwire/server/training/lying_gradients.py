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
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.memory.shared_memory import SharedSlice
from gradwire.server.training.arriving_sums import ArrivingSums
from gradwire.server.training.incoming_block import ArrivedSlice


class LyingGradients:
    """Of one block after another, as long as all slices of it lie where their elements have their place in a vector."""

    def __init__(self, run: Run, decoder: Decoder) -> None:
        spec = run.spec
        self._run = run
        self._open = (
            decoder.dense == spec.dtype
            and not spec.clips
            and spec.non_finite_policy is not NonFinitePolicy.SKIP
            and reads_where_it_lies(run)
        )
        self._slices: list[ArrivedSlice] = []
        self.sums = ArrivingSums(run)
        """Of what lies there."""

    @property
    def whole(self) -> bool:
        """Whether what has arrived of the block lies there. The first slice that does not ends that."""
        return bool(self._slices)

    def take(self, arrived: ArrivedSlice, block: StagedBlock | None, *, first: bool) -> bool:
        """Whether a slice may stay where it lies. What stays is no more told to be taken than the block is answered."""
        data, run = arrived.data, self._run
        if (
            not self._open
            or not (first or self._slices)
            or block is None
            or block.header.deferred
            or arrived.steps != 1
            or not isinstance(data, SharedSlice)
            or data.wanted  # the client writes something else there as soon as it is told that this was taken
            or data.position != arrived.place.start * run.spec.dtype.itemsize
            or not block.covers(run.spec.layout)
            or (run.storage is not None and run.storage.journals)
        ):
            return False
        if first:
            self.sums.begin()
        self.sums.note(arrived.place)
        self._slices.append(arrived)
        return True

    def give_up(self) -> list[ArrivedSlice]:
        """What has stayed so far, to be copied now."""
        slices, self._slices = self._slices, []
        return slices


def reads_where_it_lies(run: Run) -> bool:
    """Whether the run's device computes from memory of the host."""
    values = np.zeros((1, 1), run.spec.dtype)
    return run.device.stage(values, run.spec.dtype) is values
