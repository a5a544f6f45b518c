"""Contributions that lie where their workers have written them, in shared memory, and are combined from there: no copy
is made.

Worker and server are of one user. Combining reads each element once, and what comes out is the server's own: that is
what the norm, the journal and the update see. So what a worker changes after its gradient was checked is what it has
contributed, and nothing else; a combined gradient that is not finite then fails the round, as ever. What must be the
same each time that it is read is copied first: a gradient that is clipped by itself, or that may be skipped.
"""

from __future__ import annotations

from gradwire.server.devices.base import DeviceArray
from gradwire.server.encodings.decoders import Decoder
from gradwire.server.engine.block import BlockHeader
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import NonFinitePolicy, RunSpec
from gradwire.server.memory.shared_memory import SharedMemory, SharedSlice
from gradwire.server.training.arriving_sums import ArrivingSums
from gradwire.server.training.incoming_block import ArrivedSlice
from gradwire.server.training.lying_gradients import reads_where_it_lies
from gradwire.wire.layout import Range


class LyingGradient:
    """One that is whole. It outlives its stream, and keeps the memory until it is let go of."""

    def __init__(self, memory: SharedMemory, spec: RunSpec) -> None:
        memory.hold()
        self._memory = memory
        self._spec = spec

    @property
    def array(self) -> DeviceArray:
        """``[1, elements]``. It is a new view each time: one that somebody keeps would keep the memory."""
        return self._memory.gradient_values(Range(0, self._spec.layout.elements), self._spec.dtype)

    def let_go(self) -> None:
        """It is not needed any more. To be called once."""
        self._memory.let_go()


class LyingUpload:
    """The slices of one contribution after another, as long as all of it lie where their elements have their place in a
    vector."""

    def __init__(self, run: Run, decoder: Decoder) -> None:
        spec = run.spec
        self.memory: SharedMemory | None = None
        """Of the stream."""
        self._spec = spec
        self._possible = (
            decoder.dense == spec.dtype
            and (spec.clips_steps or not spec.clips)
            and spec.non_finite_policy is not NonFinitePolicy.SKIP
            and reads_where_it_lies(run)
        )
        self._open = False
        self._slices: list[ArrivedSlice] = []
        self.sums = ArrivingSums(run)
        """Of what lies there."""

    def begin(self, header: BlockHeader) -> None:
        """With the next contribution."""
        self._open = self._possible and not (header.deferred or header.absent_tensors)
        self._slices = []
        self.sums.begin()

    def take(self, arrived: ArrivedSlice) -> bool:
        """Whether a slice may stay where it lies; False: none of its contribution may, see `give_up`."""
        data = arrived.data
        self._open = (
            self._open
            and isinstance(data, SharedSlice)
            and not data.wanted  # the client writes something else there as soon as it is told that this was taken
            and data.position == arrived.place.start * self._spec.dtype.itemsize
        )
        if self._open:
            self._slices.append(arrived)
            self.sums.note(arrived.place)
        return self._open

    def give_up(self) -> list[ArrivedSlice]:
        """What has stayed so far, to be copied now."""
        slices, self._slices = self._slices, []
        return slices

    def whole(self) -> LyingGradient | None:
        """The contribution, of which all has arrived; None: it does not lie there."""
        slices, self._slices = self._slices, []
        return LyingGradient(self.memory, self._spec) if slices and self.memory is not None else None
