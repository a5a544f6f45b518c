"""How long things took, as numbers of those that took at most so long."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

STEP_SECONDS = (
    25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    60.0,
)  # fmt: skip
"""From a step of one element to one of gigabytes over a slow link."""

CALL_SECONDS = (
    1e-3,
    2.5e-3,
    5e-3,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    60.0,
    600.0,
    3600.0,
    86_400.0,
)
"""From a look at a run to a stream that is open for a day."""

FILE_SECONDS = (1e-3, 5e-3, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
"""Of writing a snapshot."""


class Histogram:
    """Counts by buckets.

    One thread at a time may observe; any may read meanwhile, and sees each number as it was at some moment.

    Args:
        bounds: upper ends of the buckets, in ascending order; each belongs to its bucket. One more has no end.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """Of each bucket, those of the ones before it not included."""
        self.total = 0.0
        """Sum of all that was observed."""

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_nothing(self, times: int) -> None:
        """As `observe` 0 so many times."""
        self.counts[0] += times

    def observe_all(self, values: npt.NDArray[np.float64]) -> None:
        """As `observe` each of them, in a fraction of the time."""
        places = np.searchsorted(self.bounds, values)
        found = np.bincount(places, minlength=len(self.counts)).tolist()
        self.counts = [count + more for count, more in zip(self.counts, found, strict=True)]
        self.total += float(values.sum())
