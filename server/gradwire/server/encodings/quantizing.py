"""INT8 differences as one compiled pass; `gradwire.wire.int8.Quantizer` says the same in numpy.

The difference, its scale, its codes and the new baseline of a block are computed while the block is in the cache: a
sixth of the time that numpy's passes take.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.jit import host_function
from gradwire.wire.int8 import BLOCK_ELEMENTS, LARGEST_SCALE, SMALLEST_SCALE, Codes, Floats


def encode_differences(
    values: npt.NDArray[np.floating[Any]],
    held: Floats,
    boundaries: npt.NDArray[np.int64],
    scales: Floats,
    codes: Codes,
) -> bool:
    """Writes ``values - held`` as scales and codes, and adds what a reader decodes to ``held``. Lets go of the GIL.

    False, where a difference is not finite: then what has been written is worth nothing.

    Args:
        values: ``[length]``, float32 or float64.
        held: ``[length]``.
        boundaries: ``[blocks + 1]``, the first element of each block, counted from anywhere, and the end of the last.
    """
    if not (values.flags.writeable and values.flags.c_contiguous):
        values = values.copy()  # else another variant would be compiled
    work = np.empty(BLOCK_ELEMENTS, np.float32)
    finite: bool = _compiled()(
        values, held, boundaries, scales, codes, work, work.view(np.int32), LARGEST_SCALE, SMALLEST_SCALE
    )
    return finite


@functools.cache
def warm_up() -> None:
    """Compiles for both dtypes, or finds that on the disk."""
    for dtype in (np.float32, np.float64):
        one = np.zeros(1, np.float32)
        encode_differences(np.zeros(1, dtype), one, np.arange(2), one.copy(), np.zeros(1, np.int8))


@functools.cache
def _compiled() -> Any:
    return host_function(_differences)


def _differences(
    values: Any,
    held: Any,
    boundaries: Any,
    scales: Any,
    codes: Any,
    work: Any,
    bits: Any,
    largest_scale: Any,
    smallest_scale: Any,
) -> bool:
    """Compiled. ``work`` has room for one block, and ``bits`` is the same memory as int32."""
    origin = boundaries[0]
    to_integer = np.float32(12582912)  # 1.5 * 2**23: what is added to it and taken off again is rounded, ties to even
    for block in range(len(scales)):
        # Arrays of their own, indexed from 0, so that the loops over them become vector instructions.
        wanted = values[boundaries[block] - origin : boundaries[block + 1] - origin]
        copy = held[boundaries[block] - origin : boundaries[block + 1] - origin]
        coded = codes[boundaries[block] - origin : boundaries[block + 1] - origin]
        for i in range(len(wanted)):
            work[i] = np.float32(wanted[i] - copy[i])
        largest = np.int32(0)
        for i in range(len(wanted)):  # magnitudes of floats are ordered as their bits are
            largest = max(largest, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
        if largest >= np.int32(0x7F800000):
            return False
        first, bits[0] = bits[0], largest
        scale = min(work[0] / np.float32(127), largest_scale)
        bits[0] = first
        inverse = np.float32(0)
        if scale >= smallest_scale:
            inverse = np.float32(1) / scale
        scales[block] = scale
        for i in range(len(wanted)):
            code = (work[i] * inverse + to_integer) - to_integer
            coded[i] = np.int8(np.int32(code))
            copy[i] = copy[i] + code * scale
    return True
