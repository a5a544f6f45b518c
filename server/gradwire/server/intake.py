"""Gradients on their way in: where they are kept, and how much of a block has arrived."""

from __future__ import annotations

from dataclasses import dataclass

from gradwire.server.block import GradientSlice
from gradwire.server.coverage import Coverage
from gradwire.server.devices.base import DeviceArray
from gradwire.server.memory import Reservation
from gradwire.server.run import Run
from gradwire.wire.errors import ProtocolViolation


@dataclass(eq=False)
class Intake:
    """What has arrived of one sequence."""

    sequence: int
    steps: int
    deferred: bool
    """Nothing is answered before the last message, which says what holds; see ``gradwire.v1.BlockHeader.deferred``."""
    coverage: Coverage
    received_bytes: int = 0
    """Encoded gradients so far."""

    def check_next(self, part: GradientSlice) -> None:
        """Raises ProtocolViolation unless ``part`` may follow what has arrived."""
        if part.sequence != self.sequence:
            raise ProtocolViolation(
                f"a message of block {part.sequence} came before block {self.sequence} was whole; "
                "send one block at a time"
            )
        header = part.header
        if not self.deferred:
            if header is not None:
                raise ProtocolViolation(
                    f"a second header for block {self.sequence}; only its first message carries one"
                )
        elif header is None:
            if part.last:
                raise ProtocolViolation(
                    f"the last message of block {self.sequence}, which is deferred, has no header; "
                    f"expected one with deferred and steps = {self.steps}"
                )
        elif header.deferred and part.last and header.steps != self.steps:
            raise ProtocolViolation(
                f"block {self.sequence} began with steps = {self.steps}, and its last header says {header.steps}; "
                f"expected {self.steps}",
                expected_steps=self.steps,
            )


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
