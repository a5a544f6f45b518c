"""Numbers, pairs and truths, in whatever type they come."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np


def number(name: str, value: Any) -> float:
    """A Python, numpy or torch number as a float. Raises TypeError for anything else, booleans included, and
    ValueError for an integer that no float holds."""
    if type(value) is float:
        return value
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", 1) != 0:  # a numpy or torch scalar
        with contextlib.suppress(RuntimeError, ValueError):
            value = item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}; expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is beyond what a float holds; expected a smaller number") from None


def truth(name: str, value: Any) -> bool:
    """True or False, also numpy's and as 1 and 0. Raises TypeError for anything else: any text would mean True."""
    if value is True or value is False:
        return value
    if not isinstance(value, (int, np.bool_)) or value not in (0, 1):
        raise TypeError(f"{name} is {value!r}; expected True or False")
    return bool(value)


def pair(name: str, value: Any) -> tuple[float, float]:
    """Two Python floats, from numbers, numpy scalars or tensors of one element. Raises TypeError."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; expected two numbers") from None
    return number(name, first), number(name, second)
