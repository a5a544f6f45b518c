"""What a combination is, twice: in exact fractions, and with numpy over whole arrays in the order of the interface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[Any]


def exact(values: Sequence[Tensor], weights: Sequence[float], divisor: float) -> Tensor:
    """``sum(weight * value) / divisor`` of finite vectors, rounded once, to float64."""
    columns = np.array(values, np.float64).T.tolist()
    found = []
    for column in columns:
        terms = [Fraction(weight) * Fraction(value) for weight, value in zip(weights, column, strict=True)]
        found.append(float(sum(terms) / Fraction(divisor)))
    return np.array(found)


def magnitude(values: Sequence[Tensor], weights: Sequence[float], divisor: float) -> Tensor:
    """As `exact`, of absolute values: what the error of a sum is measured by, where its terms cancel."""
    return exact([np.abs(value) for value in values], weights, divisor)


def in_float64(values: Sequence[Tensor], weights: Sequence[float], divisor: float) -> Tensor:
    """In the dtype of ``values``, as devices compute it: float32 with a plain sum, float64 with a compensated one."""
    with np.errstate(all="ignore"):
        if values[0].dtype == np.float32:
            plain = np.full(values[0].shape, -0.0)
            for value, weight in zip(values, weights, strict=True):
                plain = plain + value.astype(np.float64) * weight
            return (plain * (1 / divisor)).astype(np.float32)
        return _compensated(values, weights) / divisor


def _compensated(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total, lost = np.full(values[0].shape, -0.0), np.zeros(values[0].shape)
    for value, weight in zip(values, weights, strict=True):
        product, error = (value, None) if set(weights) == {1.0} else _product(value, weight)
        result = total + product
        added = result - total
        lost = lost + ((total - (result - added)) + (product - added))
        lost = lost if error is None else lost + error
        total = result
    return np.where(np.isfinite(lost) & (lost != 0), total + lost, total)


def _product(value: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """The rounded product and what it rounds off."""
    (value_high, value_low), (weight_high, weight_low) = _halves(value), _halves(np.array(weight))
    product = value * weight
    error = value_low * weight_low - (
        ((product - value_high * weight_high) - value_low * weight_high) - value_high * weight_low
    )
    return product, error


def _halves(value: Tensor) -> tuple[Tensor, Tensor]:
    scaled = value * 134217729.0
    high: Tensor = scaled - (scaled - value)
    return high, value - high


def units_apart(actual: Tensor, expected: Tensor) -> Any:
    """The largest difference, in units in the last place of what is expected."""
    spacing = np.array([math.ulp(abs(x)) for x in expected.tolist()])
    if actual.dtype == np.float32:
        spacing = np.abs(np.spacing(expected.astype(np.float32))).astype(np.float64)
    return float((np.abs(actual.astype(np.float64) - expected.astype(np.float64)) / spacing).max(initial=0))
