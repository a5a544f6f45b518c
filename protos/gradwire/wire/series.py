"""Series of scalars, as both sides know them: what they may be called, and how many buckets hold how many values."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_SERIES = 64
"""Series of one run."""

OWN_SERIES = 16
"""Of those, what is kept for the server's own."""

MAX_BUCKETS = 2048
"""Buckets of one series, and those that one block brings of it."""

MAX_NAME_BYTES = 64

GRADIENT_NORM = "gradient_norm"
STEPS_PER_SECOND = "steps_per_second"
LR = "lr"

FIELDS = ("first_step", "first", "minimum", "maximum", "last", "total", "count")
"""Rows of a table of buckets, ``[7, buckets]`` float64: a step below 2^53 is exact there."""

Table = npt.NDArray[np.float64]


def is_own(name: str) -> bool:
    """Whether a series is the server's own."""
    return name in (GRADIENT_NORM, STEPS_PER_SECOND, LR) or name.startswith(f"{LR}/")


def name_error(name: str) -> str:
    """What is wrong with the name of a client's series; empty: nothing."""
    return _known_error(name) if len(name) <= MAX_NAME_BYTES else _error(name)


@lru_cache(maxsize=4 * MAX_SERIES)
def _known_error(name: str) -> str:
    """Steps bring the same few names again and again."""
    return _error(name)


def _error(name: str) -> str:
    if not 1 <= len(name.encode(errors="replace")) <= MAX_NAME_BYTES or not name.isprintable() or name != name.strip():
        return (
            f"{name!r} is no name of a series; expected 1 to {MAX_NAME_BYTES} bytes of printable characters, without "
            "blanks at its ends"
        )
    if is_own(name):
        return f"the series {name!r} is the server's own; expected another name"
    return ""


def merged(table: Table, width: int) -> Table:
    """Buckets put together to those of ``width`` steps, whose first steps are multiples of it.

    Args:
        table: ``[7, n]``, see `FIELDS`; steps must not fall.

    A minimum or maximum leaves NaN out where there is anything else; a total does not.
    """
    first_steps = table[0] - table[0] % width
    if len(first_steps) < 2:
        return np.concatenate((first_steps[None], table[1:]))
    starts = np.flatnonzero(np.append(True, first_steps[1:] != first_steps[:-1]))
    ends = np.append(starts[1:], len(first_steps)) - 1
    out = np.empty((len(FIELDS), len(starts)))
    out[0] = first_steps[starts]
    out[1] = table[1, starts]
    np.fmin.reduceat(table[2], starts, out=out[2])
    np.fmax.reduceat(table[3], starts, out=out[3])
    out[4] = table[4, ends]
    with np.errstate(invalid="ignore", over="ignore"):  # of an infinity and its opposite
        np.add.reduceat(table[5], starts, out=out[5])
    np.add.reduceat(table[6], starts, out=out[6])
    return out


def width_for(first_step: int, last_step: int, most: int = MAX_BUCKETS) -> int:
    """The least power of two of which ``most`` buckets reach from one step to another, both included."""
    width = 1
    while last_step // width - first_step // width >= most:
        width *= 2
    return width


def buckets_of(values: npt.NDArray[Any], first_step: int) -> tuple[Table, int]:
    """Values of consecutive steps as at most `MAX_BUCKETS` buckets, and their width in steps.

    Args:
        values: ``[K]`` float64, K >= 1.
        first_step: of the first one.
    """
    width = width_for(first_step, first_step + len(values) - 1)
    bounds = np.arange(first_step - first_step % width, first_step + len(values), width)
    starts = np.maximum(bounds - first_step, 0)
    ends = np.append(starts[1:], len(values))
    table = np.empty((len(FIELDS), len(starts)))
    table[0] = bounds
    table[1], table[4] = values[starts], values[ends - 1]
    np.fmin.reduceat(values, starts, out=table[2])
    np.fmax.reduceat(values, starts, out=table[3])
    with np.errstate(invalid="ignore", over="ignore"):
        np.add.reduceat(values, starts, out=table[5])
    table[6] = ends - starts
    return table, width
