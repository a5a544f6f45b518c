"""Buckets of one series as arrays: what is read of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.wire.series import FIELDS, Table


@dataclass(frozen=True, eq=False)
class SeriesPart:
    """Buckets of one series, in order; only those with values. All arrays have the same length."""

    first_step: npt.NDArray[np.int64]
    """The bucket holds values of ``first_step .. first_step + steps - 1``."""
    steps: int
    """Width of each, in steps; a power of two, of which each ``first_step`` is a multiple."""
    first: npt.NDArray[np.float64]
    minimum: npt.NDArray[np.float64]
    maximum: npt.NDArray[np.float64]
    last: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]
    """Sum of the values; their mean is ``total / count``."""
    count: npt.NDArray[np.int64]
    last_step: int
    """Of the newest value of the series; -1: there is none."""

    def since(self, first_step: int) -> SeriesPart:
        """Its buckets from one on."""
        at = int(np.searchsorted(self.first_step, first_step))
        arrays: dict[str, Any] = {field: getattr(self, field)[at:] for field in FIELDS}
        return replace(self, **arrays)


def part_of(table: Table, width: int, last_step: int) -> SeriesPart:
    """A table of buckets as arrays, one for each of its rows."""
    first_step, first, minimum, maximum, last, total, count = table
    return SeriesPart(
        first_step.astype(np.int64), width, first, minimum, maximum, last, total, count.astype(np.int64), last_step
    )


NOTHING = part_of(np.empty((len(FIELDS), 0)), 1, -1)
"""A series without values."""
