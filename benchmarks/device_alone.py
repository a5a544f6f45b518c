"""What a server asks of its device for one step, without a wire, each part alone and waited for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.backend import FLOAT32, Backend
from benchmarks.contenders.problem import Problem
from benchmarks.long_vector import PLAIN, Vector
from benchmarks.measure import Timing
from gradwire.wire.layout import Range

IN, UPDATE, OUT = "alone: gradients to the device", "alone: the update there", "alone: parameters to the host"


class DeviceAlone:
    """The problem's vectors on its device, and the ``parts`` of a step over them."""

    def __init__(self, problem: Problem) -> None:
        self._backend = Backend(problem.device, problem.threads)
        device = self._backend.device
        elements = problem.size * problem.tensors
        values = np.concatenate(problem.gradients())[None]
        gradients = device.allocate(1, elements, FLOAT32)
        vector = Vector(self._backend, PLAIN, np.concatenate(problem.parameters())[None])
        self.parts: dict[str, Callable[[], object]] = {
            IN: lambda: device.write(gradients, 0, values),
            UPDATE: lambda: vector.update(gradients),
            OUT: lambda: device.read(vector.state.params, Range(0, 1), Range(0, elements)),
        }

    def close(self) -> None:
        """Lets go of the device."""
        self.parts.clear()
        self._backend.close()


def verdict(step: Timing, wire: Timing, alone: dict[str, Timing]) -> str:
    """How much of the device's work a step hides: all of it where it takes as long as the wire alone, none where it
    takes as long as wire and parts one after another."""
    device = sum(timing.median for timing in alone.values())
    hidden = 1 - (step.median - wire.median) / device
    return (
        f"the device alone takes {1e3 * device:.3g} ms, the floor {1e3 * wire.median:.3g} ms, "
        f"a step {1e3 * step.median:.3g} ms: {max(0.0, min(1.0, hidden)):.0%} of the device's time is hidden"
    )
