"""The combination of several gradients into one: what it is made of, and how one element of it is computed.

The functions at the end are what all devices run, in float64 whatever the run's dtype. They are plain Python over
scalars, of ``+ - * /`` and comparisons, as the optimizers' are, and none of their roundings may be left out or fused.
What they compute goes into the journal, so a change of this file refuses no journal.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from gradwire.wire.layout import Range

_SMALLEST_DIVISOR, _LARGEST_DIVISOR = 2.0**-1000, 2.0**1000
"""Whose inverses are as precise as they are themselves."""


class Piece(NamedTuple):
    """A range of the flat vector and what it is combined from."""

    place: Range
    terms: tuple[tuple[int, float], ...]
    """(index into the sources, weight > 0), in the order in which they are added; at least one."""
    divisor: float
    """The total weight for a mean, 1.0 for a sum."""


class PieceTable(NamedTuple):
    """Pieces as arrays, the terms of one after those of another. `piece_table` makes it, and checks what is in it."""

    starts: npt.NDArray[np.int64]
    """``[pieces]``, elements."""
    ends: npt.NDArray[np.int64]
    """``[pieces]``, how many elements this piece and those before it have."""
    firsts: npt.NDArray[np.int64]
    """``[pieces + 1]``, where the terms of each piece begin, and the end of the last one's."""
    sources: npt.NDArray[np.int64]
    """``[terms]``."""
    weights: npt.NDArray[np.float64]
    """``[terms]``."""
    divisors: npt.NDArray[np.float64]
    """``[pieces]``."""
    unweighted: npt.NDArray[np.bool_]
    """``[pieces]``, whether all weights are 1."""
    additions: int
    """Elements of sources that are read for all of them."""

    @property
    def elements(self) -> int:
        """Of all pieces together."""
        return int(self.ends[-1]) if self.ends.size else 0


def piece_table(pieces: Sequence[Piece], sources: int, elements: int) -> PieceTable:
    """``pieces`` of a vector of ``elements``, from so many ``sources``.

    Raises ValueError for a piece that lies elsewhere or has no terms, and for a term or a divisor that is none.
    """
    ends, firsts, end, additions = [], [0], 0, 0
    indices: list[int] = []
    weights: list[float] = []
    for piece in pieces:
        start, stop = piece.place
        if not 0 <= start <= stop <= elements:
            _refuse(piece, f"lies elsewhere; expected a range of a vector of {elements} elements")
        if not piece.terms:
            _refuse(piece, "has no terms; expected at least one")
        own_indices, own_weights = zip(*piece.terms, strict=True)
        if min(own_indices) < 0 or max(own_indices) >= sources:
            _refuse(piece, f"has the sources {own_indices}; there are {sources}, counted from 0")
        if not (min(own_weights) > 0 and sum(own_weights) < inf):  # NaN shows in the sum
            _refuse(piece, f"has the weights {own_weights}; expected numbers above 0 whose sum is finite")
        if not _SMALLEST_DIVISOR <= piece.divisor <= _LARGEST_DIVISOR:
            _refuse(piece, f"has the divisor {piece.divisor}; expected a number from 2**-1000 to 2**1000")
        end += stop - start
        additions += (stop - start) * len(own_indices)
        indices += own_indices
        weights += own_weights
        ends.append(end)
        firsts.append(len(indices))
    return PieceTable(
        np.array([piece.place.start for piece in pieces], np.int64),
        np.array(ends, np.int64),
        np.array(firsts, np.int64),
        np.array(indices, np.int64),
        np.array(weights, np.float64),
        np.array([piece.divisor for piece in pieces], np.float64),
        np.array([set(weights[a:b]) == {1.0} for a, b in pairwise(firsts)], np.bool_),
        additions,
    )


def _refuse(piece: Piece, what: str) -> NoReturn:
    raise ValueError(f"the piece of elements {piece.place.start}..{piece.place.stop} {what}")


def check_alike(out: tuple[Any, Any], sources: Sequence[tuple[Any, Any]]) -> None:
    """Raises ValueError unless all arrays, (shape, dtype) each, are alike and ``[1, elements]``."""
    if out[0][0] != 1:
        raise ValueError(f"what receives a combination has {out[0][0]} rows; expected 1")
    for index, source in enumerate(sources):
        if source != out:
            raise ValueError(
                f"source {index} has the shape {tuple(source[0])} and is {source[1]}; "
                f"what receives the combination has {tuple(out[0])} and is {out[1]}"
            )


# What devices compile. A sum begins with -0.0, which alone changes nothing that is added to it, -0.0 included.


def add_weighted(total: Any, value: Any, weight: Any) -> Any:
    """For float32, which float64 has 29 more bits than: rounding shows in no sum of fewer than a million terms."""
    return total + value * weight


def add_compensated(total: Any, lost: Any, value: Any) -> Any:
    """For float64 and weights of 1: ``lost`` sums up what the additions to ``total`` round off (Knuth's TwoSum)."""
    result = total + value
    added = result - total
    return result, lost + ((total - (result - added)) + (value - added))


def add_product(total: Any, lost: Any, value: Any, weight: Any) -> Any:
    """As `add_compensated`, for other weights: what the product rounds off, too (Dekker's product: 2**27 + 1 cuts a
    number into halves whose products are exact)."""
    scaled = value * 134217729.0
    high = scaled - (scaled - value)
    low = value - high
    scaled_weight = weight * 134217729.0
    weight_high = scaled_weight - (scaled_weight - weight)
    weight_low = weight - weight_high
    product = value * weight
    rounded_off = low * weight_low - (((product - high * weight_high) - low * weight_high) - high * weight_low)
    result, lost = add_compensated(total, lost, product)
    return result, lost + rounded_off


def with_lost(total: Any, lost: Any) -> Any:
    """The compensated sum. ``lost`` is no number where something overflowed or was none itself: ``total`` is then the
    plain sum with its infinity. Where nothing was lost, a total of -0.0 stays."""
    if lost - lost == 0.0 and lost != 0.0:
        total = total + lost
    return total
