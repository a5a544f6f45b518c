"""What a run is from its creation on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from gradwire.server.optimizers.base import Hyperparameters
from gradwire.wire.layout import Layout

TENSOR_BYTES = 1024
"""What a tensor's name, shape and place are counted with in the memory limit, besides its values."""


class NonFinitePolicy(IntEnum):
    """What happens to a block whose gradients hold NaN or infinity."""

    REJECT = 1
    SKIP = 2
    ALLOW = 3


@dataclass(frozen=True)
class RunSpec:
    """What a run is from its creation on. ``name`` is the whole resource name."""

    name: str
    layout: Layout
    dtype: np.dtype[Any]
    groups: tuple[Hyperparameters, ...]
    non_finite_policy: NonFinitePolicy = NonFinitePolicy.REJECT

    @property
    def slots(self) -> tuple[str, ...]:
        """The state vectors of the run: those that any group uses, in the optimizer's order."""
        used = {slot for group in self.groups for slot in group.kernel.used_slots}
        return tuple(dict.fromkeys(slot for group in self.groups for slot in group.kernel.slots if slot in used))

    @property
    def vector_bytes(self) -> int:
        """Size of one flat vector."""
        return self.layout.elements * self.dtype.itemsize

    @property
    def memory_bytes(self) -> int:
        """What the run takes: parameters, slots, and the names and shapes of its tensors."""
        return self.vector_bytes * (1 + len(self.slots)) + TENSOR_BYTES * len(self.layout.tensors)
