"""Which elements of a round's gradient are combined from which contributions, and with which weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import frexp, fsum, isfinite, ldexp, ulp

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.combining import Piece
from gradwire.wire.layout import Layout, Range

Contribution = tuple[float, frozenset[int]]
"""(weight, indices of the tensors that are absent from it)"""


def pieces_of(layout: Layout, contributions: Sequence[Contribution], mean: bool) -> list[Piece]:
    """How ``contributions``, which are in the order of their workers' ids, become one: `Device.combine` takes it.

    Args:
        mean: each tensor is averaged over those that have it, by their weights; else weighted and added up.

    Each piece has as many tensors as there are neighbours with the same contributors; what nobody has is in none. In a
    mean equal weights become 1, so that they are exact, and others are scaled by a power of two, which changes no bit
    but lets no sum of theirs overflow.

    Raises ValueError for a weight that is no number above 0.
    """
    weights = [weight for weight, _ in contributions]
    for weight in weights:
        if not (weight > 0 and isfinite(weight)):
            raise ValueError(f"a contribution has the weight {weight}; expected a number above 0")

    @functools.cache
    def summands(contributors: tuple[int, ...]) -> tuple[tuple[tuple[int, float], ...], float]:
        """Terms and divisor of a piece that these contribute to."""
        found, divisor = [weights[index] for index in contributors], 1.0
        if mean:
            found = _in_proportion(found)
            divisor = fsum(found)
        return tuple(zip(contributors, found, strict=True)), divisor

    return [
        Piece(place, *summands(contributors))
        for place, contributors in _contributed(layout, [absent for _, absent in contributions])
        if contributors
    ]


def absent_from_all(layout: Layout, contributions: Sequence[Contribution]) -> frozenset[int]:
    """Indices of the tensors that nobody has: a round leaves them untouched, their t too."""
    if not contributions:
        return frozenset(range(len(layout.names)))
    return frozenset.intersection(*(absent for _, absent in contributions))


def _in_proportion(weights: Sequence[float]) -> list[float]:
    """Weights of a mean, the largest of them from 1 to 2."""
    if len({*weights}) == 1:
        return [1.0] * len(weights)
    _, exponent = frexp(max(weights))
    # A weight of next to nothing stays one: an infinity that it goes with must not become NaN.
    return [max(ldexp(weight, 1 - exponent), ulp(0.0)) for weight in weights]


def _contributed(layout: Layout, absences: Sequence[frozenset[int]]) -> list[tuple[Range, tuple[int, ...]]]:
    """Ranges of the flat vector, in order, each with who contributes to it; no two neighbours have the same. Looks at
    all tensors at once, and one by one at ranges only: a layout may have many tensors."""
    partial = [index for index, absent in enumerate(absences) if absent]
    everywhere = [index for index, absent in enumerate(absences) if not absent]
    if not partial:
        return [(Range(0, layout.elements), tuple(everywhere))] if layout.elements else []
    starts, stops, _ = layout.columns
    filled = np.flatnonzero(starts < stops)  # an empty tensor parts no neighbours
    if not filled.size:
        return []
    # Twice over the absences, rather than to keep a row of all tensors for each of many workers.
    begins = np.zeros(filled.size, np.bool_)
    begins[0] = True
    for index in partial:
        present = layout.present(absences[index])[filled]
        begins[1:] |= present[1:] != present[:-1]
    firsts = np.flatnonzero(begins)
    lasts = np.append(firsts[1:], filled.size) - 1
    places = map(Range, starts[filled[firsts]].tolist(), stops[filled[lasts]].tolist())
    contributors: npt.NDArray[np.bool_] = np.ones((firsts.size, len(absences)), np.bool_)
    for index in partial:
        contributors[:, index] = layout.present(absences[index])[filled[firsts]]
    known: dict[bytes, tuple[int, ...]] = {}  # there may be as many ranges as tensors, but with few groups of workers
    found = []
    for place, row in zip(places, contributors, strict=True):
        key = row.tobytes()
        if key not in known:
            known[key] = tuple(np.flatnonzero(row).tolist())
        found.append((place, known[key]))
    return found
