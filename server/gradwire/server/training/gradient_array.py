"""Where the gradients of a stream wait until a block is whole."""

from __future__ import annotations

from gradwire.server.devices.base import DeviceArray
from gradwire.server.engine.run import Run
from gradwire.server.memory.budget import Reservation


class GradientArray:
    """The array ``[steps, elements]`` of one stream. It outlives its block: the next one is mostly of the same size."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._array: DeviceArray | None = None
        self._steps = 0
        self._memory: Reservation | None = None

    def of(self, steps: int) -> DeviceArray:
        """The array for a block of ``steps``, holding what is left of earlier ones. Raises MemoryLimitExceeded."""
        if self._array is None or self._steps != steps:
            self.release()
            run, spec = self._run, self._run.spec
            purpose = f"a block of {steps} gradients of {spec.name}"
            self._memory = run.budget.reserve(spec.vector_bytes * steps, purpose)
            self._array = run.device.allocate(steps, spec.layout.elements, spec.dtype)
            self._steps = steps
        return self._array

    def release(self) -> None:
        """Frees the array."""
        self._array = None
        if self._memory is not None:
            self._memory.release()
            self._memory = None
