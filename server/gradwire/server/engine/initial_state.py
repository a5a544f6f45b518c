"""What the state of a new run is, before its first step and before anything has been written to it."""

from __future__ import annotations

import numpy as np

from gradwire.server.engine.run import Run
from gradwire.server.optimizers.base import initial_values

_AT_ONCE = 2**20
"""Elements: what is put in place needs as much room on the host for a moment."""


def begins_with_zeros(run: Run) -> bool:
    """Whether the slots are what `prime` makes of them already."""
    return not any(initial_values(group) for group in run.spec.groups)


def prime(run: Run) -> None:
    """Gives each group's part of the slots what its optimizer begins with. Bulk work."""
    for group, part in run.spec.group_ranges:
        for slot, value in initial_values(run.spec.groups[group]).items():
            for start in range(part.start, part.stop, _AT_ONCE):
                length = min(_AT_ONCE, part.stop - start)
                run.device.write(run.state.slots[slot], start, np.full((1, length), value))
