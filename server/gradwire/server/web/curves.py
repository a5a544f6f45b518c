"""Series as browsers draw them: what has come since they were told, in as few numbers as show it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire.server.series.run_series import RunSeries, SeriesPart


class Told(NamedTuple):
    """What somebody has of one series."""

    width: int
    """Steps of a bucket."""
    last_step: int
    values: int
    """In the last bucket."""


def news(series: RunSeries, told: dict[str, Told], from_step: int = 0) -> dict[str, dict[str, Any]]:
    """What is new in each series, by name. May take its time.

    Who gets it drops the points at ``from`` and after it, and adds those that came.

    Args:
        told: what is known already; brought up to date.
        from_step: nothing before it is wanted of a series that is not in ``told``.
    """
    found = {}
    for name in series.names():
        before = told.get(name)
        since = from_step if before is None else before.last_step
        part = series.read(name, since)
        if part is not None and before is not None and part.steps != before.width:  # its buckets are others now
            part = series.read(name)
        if part is None or not len(part.count):
            continue
        after = Told(part.steps, part.last_step, int(part.count[-1]))
        if after != before:
            told[name] = after
            found[name] = points(part)
    return found


def points(part: SeriesPart) -> dict[str, Any]:
    """Buckets as arrays: first steps and means; smallest and largest values where a bucket has several."""
    found: dict[str, Any] = {
        "from": int(part.first_step[0]),
        "width": part.steps,
        "step": part.first_step.tolist(),
        "mean": _short(part.total / part.count),
    }
    if (part.count > 1).any():
        found |= {"min": _short(part.minimum), "max": _short(part.maximum)}
    return found


def _short(values: npt.NDArray[np.float64]) -> list[float]:
    """With as many digits as a float32 has."""
    return [float(f"{value:.7g}") for value in values.tolist()]
