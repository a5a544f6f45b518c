"""In which order squares are added. It decides the bits of a sum, so neither the device nor the wire changes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gradwire.wire.layout import Range

NORM_CHUNK = 65_536
"""Squares are summed in float64 over chunks of this many elements of the flat vector, then chunk by chunk in order."""


def in_order(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The rows of ``sums`` added one after another; numpy's own sum over this axis would pair them up by count."""
    if len(sums) == 1:
        first: npt.NDArray[np.float64] = sums[0]
        return first
    totals: npt.NDArray[np.float64] = np.add.accumulate(sums, axis=0)[-1:]
    return totals[0] if len(totals) else np.zeros(sums.shape[1])


def chunk_edges(ranges: Sequence[Range]) -> npt.NDArray[np.int64]:
    """``ranges`` cut at the multiples of NORM_CHUNK: ``[chunks, 2]``, the first element of each and the next one's."""
    if len(ranges) == 1 and ranges[0].start // NORM_CHUNK == (ranges[0].stop - 1) // NORM_CHUNK:
        return np.array(ranges, np.int64)  # small runs make many steps
    starts, stops = np.array(ranges, np.int64).reshape(-1, 2).T
    firsts = starts // NORM_CHUNK
    counts = -(-stops // NORM_CHUNK) - firsts
    before = np.cumsum(counts) - counts
    cuts = (np.arange(counts.sum()) + np.repeat(firsts - before, counts)) * NORM_CHUNK
    starts, stops = np.repeat(starts, counts), np.repeat(stops, counts)
    return np.stack([np.maximum(starts, cuts), np.minimum(stops, cuts + NORM_CHUNK)], axis=1)


def whole_chunks(part: Range, elements: int) -> tuple[int, int]:
    """First and last plus one of the chunks, of a vector of ``elements``, that lie in ``part``."""
    first = -(-part.start // NORM_CHUNK)
    stop = part.stop // NORM_CHUNK + (part.stop == elements and elements % NORM_CHUNK > 0)
    return first, stop if part.start < part.stop else first


def range_of(first: int, stop: int, elements: int) -> Range:
    """The elements of the chunks from ``first`` to ``stop``, of a vector of ``elements``."""
    return Range(first * NORM_CHUNK, min(stop * NORM_CHUNK, elements))
