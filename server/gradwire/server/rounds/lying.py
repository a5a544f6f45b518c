"""A contribution that lies where its worker has written it, in shared memory, and is combined from there: no copy is
made.

Worker and server are of one user. Combining reads each element once, and what comes out is the server's own: that is
what the norm, the journal and the update see. So what a worker changes after its gradient was checked is what it has
contributed, and nothing else; a combined gradient that is not finite then fails the round, as ever. What must be the
same each time that it is read is copied first: a gradient that is clipped by itself, or that may be skipped.
"""

from __future__ import annotations

from gradwire.server.devices.base import DeviceArray
from gradwire.server.engine.spec import RunSpec
from gradwire.server.memory.shared_memory import SharedMemory
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
