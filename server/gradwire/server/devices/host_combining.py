"""Combining on a device whose arrays are numpy's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server import jit
from gradwire.server.devices.chunks import NORM_CHUNK
from gradwire.server.devices.combining import Piece, check_alike, piece_table
from gradwire.server.devices.combining_driver import LONG_TILE, combine_source

Split = Callable[[Callable[[int, int], object], int, int, int, int], None]
"""``split(function, start, stop, work, grain)`` calls ``function(a, b)`` over parts of ``start .. stop``."""


def combine_on_host(
    split: Split, out: npt.NDArray[Any], sources: Sequence[npt.NDArray[Any]], pieces: Sequence[Piece]
) -> npt.NDArray[np.float64] | None:
    """`Device.combine` over numpy's arrays. Raises ValueError as that does."""
    check_alike((out.shape, out.dtype), [(source.shape, source.dtype) for source in sources])
    table = piece_table(pieces, len(sources), out.shape[1])
    if not table.elements:
        return None
    sums, grain = np.empty(0), LONG_TILE
    if len(pieces) == 1 and pieces[0].place.start % NORM_CHUNK == 0 and table.elements > NORM_CHUNK:
        sums, grain = np.empty(-(-table.elements // NORM_CHUNK)), NORM_CHUNK
    # As few ceremonies as may be: rounds of small runs are closed thousands of times a second.
    rows = [np.require(source[0], requirements=("C", "A")) for source in sources]  # what can be read by address
    addresses = np.array([row.__array_interface__["data"][0] for row in rows], np.int64)
    work = functools.partial(
        _kernel(out.dtype),
        out[0],
        table.starts,
        table.ends,
        table.firsts,
        addresses[table.sources],
        table.weights,
        table.divisors,
        table.unweighted,
        sums,
    )
    split(work, 0, table.elements, table.additions, grain)
    return sums[:, np.newaxis] if sums.size else None


@functools.cache
def _kernel(dtype: np.dtype[Any]) -> Any:
    return jit.cpu_module(combine_source(dtype), "combine")
