"""What a run is from its creation on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np

from gradwire.server.engine.features import Feature
from gradwire.server.engine.shared import Clip, SharedRun
from gradwire.server.optimizers.base import Hyperparameters
from gradwire.wire.errors import InvalidHyperparameter, InvalidSpec
from gradwire.wire.layout import Layout, Range

TENSOR_BYTES = 1024
"""What a tensor's name, shape and place are counted with in the memory limit, besides its values."""


class NonFinitePolicy(IntEnum):
    """What happens to a block whose gradients hold NaN or infinity."""

    REJECT = 1
    SKIP = 2
    ALLOW = 3


class Durability(IntEnum):
    """How much of a run outlives the server process; see ``gradwire.v1.Durability``."""

    MEMORY = 1
    SNAPSHOT = 2
    JOURNAL = 3


@dataclass(frozen=True)
class RunSpec:
    """What a run is from its creation on. ``name`` is the whole resource name. Raises InvalidHyperparameter,
    InvalidSpec."""

    name: str
    layout: Layout
    dtype: np.dtype[Any]
    groups: tuple[Hyperparameters, ...]
    non_finite_policy: NonFinitePolicy = NonFinitePolicy.REJECT
    clip_value: float | None = None
    """Largest size of an element of the gradient; comes before ``clip_norm``. None: any."""
    clip_norm: float | None = None
    """Largest L2 norm of a step's gradient. None: any."""
    durability: Durability | None = None
    """None: the server decides, at creation."""
    ttl_seconds: float | None = None
    """The run ends when nobody has used it for so long. None: never."""
    shared: SharedRun | None = None
    """How many workers train it together. None: it has one worker at a time."""

    def __post_init__(self) -> None:
        if self.ttl_seconds is not None and not (isfinite(self.ttl_seconds) and self.ttl_seconds > 0):
            raise InvalidSpec(f"ttl_seconds is {self.ttl_seconds}; expected a finite number > 0, or 0 for none")
        for name in ("clip_value", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value >= 0):
                raise InvalidHyperparameter(f"{name} is {value}; expected a finite number >= 0", field=name)

    @cached_property
    def group_ranges(self) -> tuple[tuple[int, Range], ...]:
        """(group, its elements), of the groups that have any."""
        starts = self.layout.columns.starts[self.layout.first_tensors].tolist()
        stops = [*starts[1:], self.layout.elements]
        parts = [Range(start, stop) for start, stop in zip(starts, stops, strict=True)]
        return tuple((group, part) for group, part in enumerate(parts) if part.start < part.stop)

    @property
    def needs(self) -> frozenset[Feature]:
        """What every worker of the run must understand; see `features`."""
        return frozenset() if self.shared is None else frozenset({Feature.SHARED_RUN})

    @property
    def clips(self) -> bool:
        """Whether gradients are changed before a step."""
        return self.clip_value is not None or self.clip_norm is not None

    @property
    def clips_steps(self) -> bool:
        """Whether that happens to what a step applies, and not to what each worker has sent."""
        return self.clips and (self.shared is None or self.shared.clip is Clip.ROUND)

    @property
    def early(self) -> bool:
        """Whether elements can be computed before all of a block has arrived.

        Not under SKIP, which can leave out a step only once it has seen all of it, and not with clipping: a norm is
        that of the whole gradient, and the staged gradient is clipped in place, at commit. Not where blocks are
        journaled either: all of the gradient is kept for that until the block is on disk.
        """
        kept = self.durability is Durability.JOURNAL
        return self.non_finite_policy is not NonFinitePolicy.SKIP and not self.clips and not kept

    @property
    def sums_last_row_only(self) -> bool:
        """Whether nothing but the receipt's norm, which is the last row's, is made of a block's sums of squares."""
        return self.non_finite_policy is NonFinitePolicy.ALLOW and self.clip_norm is None

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The state vectors of the run: those that any group uses, in the optimizer's order."""
        kernels = {id(group): group.kernel for group in self.groups}.values()
        used = {slot for kernel in kernels for slot in kernel.used_slots}
        return tuple(dict.fromkeys(slot for kernel in kernels for slot in kernel.slots if slot in used))

    @property
    def vector_bytes(self) -> int:
        """Size of one flat vector."""
        return self.layout.elements * self.dtype.itemsize

    @property
    def state_bytes(self) -> int:
        """Size of all flat vectors: parameters and slots."""
        return self.vector_bytes * (1 + len(self.slots))

    @property
    def memory_bytes(self) -> int:
        """What the run takes: its vectors, and the names and shapes of its tensors."""
        return self.state_bytes + self.rounds_bytes + TENSOR_BYTES * len(self.layout.names)

    @property
    def rounds_bytes(self) -> int:
        """What a shared run takes besides: two more generations of parameters, and a combined gradient."""
        return 0 if self.shared is None else 3 * self.vector_bytes
