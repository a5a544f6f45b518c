"""Series as browsers draw them: what has come since they were told, in as few numbers as show it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.series.watch import News, SeriesWatch


def news(watch: SeriesWatch) -> dict[str, dict[str, Any]]:
    """What is new in each series, by name. May take its time.

    Who gets it drops the points at ``from`` and after it, and adds those that came.
    """
    return {each.name: points(each) for each in watch.news()}


def points(each: News) -> dict[str, Any]:
    """Buckets as arrays: first steps and means; smallest and largest values where a bucket has several."""
    part = each.part
    found: dict[str, Any] = {
        "from": each.replaces_from,
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
