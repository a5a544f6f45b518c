"""Combining on a CUDA device.

It stands apart from ``cuda.py`` and ``cuda_driver.py``, on whose text the fingerprints of stored journals depend: what
is combined goes into the journal, and is not computed again.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradwire.server import jit
from gradwire.server.devices.base import Device, DeviceArray
from gradwire.server.devices.combining import (
    Piece,
    add_compensated,
    add_product,
    add_weighted,
    check_alike,
    piece_table,
    with_lost,
)
from gradwire.server.devices.cuda_driver import TOGETHER, explicit_rounding
from gradwire.server.devices.cuda_runtime import (
    NUMBA_CUDA_VERSION,
    SIMULATED,
    Gpu,
    Simulator,
    compiled,
    made_once,
    torch,
)
from gradwire.server.jit import source_of

_GPU_ARITHMETIC = """
from numba.cuda.libdevice import dadd_rn as add
from numba.cuda.libdevice import ddiv_rn as div
from numba.cuda.libdevice import dmul_rn as mul

rounded = np.{dtype}
"""

# As in `cuda_driver`: kernels run as plain Python, over numpy's scalars.
_SIMULATED_ARITHMETIC = """
quiet = np.errstate(all="ignore")
add = quiet(lambda a, b: a + b)
div = quiet(lambda a, b: a / b)
mul = quiet(lambda a, b: a * b)
rounded = quiet(lambda a: np.{dtype}(a))
"""

_TEMPLATE = '''
from numba import cuda
{arithmetic}

{functions}


@cuda.jit(cache=True)
def combine(out, sources, weights, divisors, piece, first, last, unweighted, start, stop):
    """One piece, ``start .. stop``, whose terms are ``first .. last``. Each term has its own source and weight."""
    divisor = divisors[np.uint64(piece)]
    lanes = cuda.blockDim.x
    i = start + cuda.blockIdx.x * {count} * lanes + cuda.threadIdx.x
    while i < stop:
        if i + {further} * lanes < stop:
{together}
        else:
            while i < stop:
{single}
                i += lanes
        i += cuda.gridDim.x * {count} * lanes
'''

_NARROW = """
for term in range(first, last):
    source, weight = sources[np.uint64(term)], weights[np.uint64(term)]
    {loads}
    {weighted}
"""

_WIDE = """
if unweighted:
    for term in range(first, last):
        source = sources[np.uint64(term)]
        {loads}
        {unweighted}
else:
    for term in range(first, last):
        source, weight = sources[np.uint64(term)], weights[np.uint64(term)]
        {loads}
        {weighted}
"""


class CombiningDevice(Device):
    """What `CudaDevice` is made from."""

    _runtime: Gpu | Simulator

    def combine(self, out: DeviceArray, sources: Sequence[DeviceArray], pieces: Sequence[Piece]) -> None:
        tensors = [source.tensor for source in sources]
        check_alike((out.tensor.shape, out.tensor.dtype), [(tensor.shape, tensor.dtype) for tensor in tensors])
        table = piece_table(pieces, len(sources), out.shape[1])
        if not table.elements:
            return
        with self._runtime.section():
            out.fetched = None
            pointers = self._runtime.pointers([tensors[index] for index in table.sources])
            weights = torch.from_numpy(table.weights).to(self._runtime.device)
            divisors = torch.from_numpy(table.divisors).to(self._runtime.device)
            arguments = [*map(self._runtime.argument, (out.tensor, pointers, weights, divisors))]
            kernel = _kernel(np.dtype(np.float32 if out.tensor.dtype == torch.float32 else np.float64))
            threads = self._runtime.threads
            for number, piece in enumerate(pieces):
                start, stop = piece.place
                terms = (int(table.firsts[number]), int(table.firsts[number + 1]), bool(table.unweighted[number]))
                blocks = -(-(stop - start) // (threads * TOGETHER))
                if blocks:
                    self._runtime.launch(kernel, blocks, threads, *arguments, number, *terms, start, stop)


@made_once
def _kernel(dtype: np.dtype[Any]) -> Any:
    source = f"# numba-cuda {NUMBA_CUDA_VERSION}\n{cuda_combine_source(dtype, SIMULATED)}"
    return compiled(jit.load(source, "cuda_combine").combine, combine_signature(dtype))


def combine_signature(dtype: np.dtype[Any]) -> list[str]:
    """The types of the kernel's parameters; ``*`` is an address, ``**`` one of addresses."""
    return [f"{dtype.name}*", f"{dtype.name}**", "float64*", "float64*", *["int64"] * 3, "boolean", *["int64"] * 2]


def cuda_combine_source(dtype: np.dtype[Any], simulated: bool) -> str:
    """The module text of ``combine`` for one float type."""
    narrow = dtype.itemsize == 4
    functions: list[Callable[..., Any]] = [add_weighted] if narrow else [add_compensated, add_product, with_lost]
    arithmetic = _SIMULATED_ARITHMETIC if simulated else _GPU_ARITHMETIC
    return _TEMPLATE.format(
        arithmetic=arithmetic.format(dtype=dtype.name),
        functions="\n\n".join(f"@cuda.jit(device=True)\n{explicit_rounding(source_of(f))}\n" for f in functions),
        count=TOGETHER,
        further=TOGETHER - 1,
        together=textwrap.indent(_elements(narrow, TOGETHER), 12 * " "),
        single=textwrap.indent(_elements(narrow, 1), 16 * " "),
    )


def _elements(narrow: bool, count: int) -> str:
    """The body of a loop over ``count`` elements at once: all that a term needs is asked for before it is added."""

    def each(line: str, indent: int = 0) -> str:
        return f"\n{' ' * indent}".join(line.format(e=e) for e in range(count))

    indent = 4 if narrow else 8
    sums = "total{e} = add_weighted(total{e}, value{e}, weight)"
    if not narrow:
        sums = "total{e}, lost{e} = add_product(total{e}, lost{e}, value{e}, weight)"
    parts = [
        each("i{e} = np.uint64(i + {e} * lanes)"),
        each("total{e} = -0.0" if narrow else "total{e}, lost{e} = -0.0, 0.0"),
        (_NARROW if narrow else _WIDE)
        .format(
            loads=each("value{e} = np.float64(source[i{e}])", indent),
            weighted=each(sums, indent),
            unweighted=each("total{e}, lost{e} = add_compensated(total{e}, lost{e}, value{e})", indent),
        )
        .strip(),
    ]
    if narrow:
        # As on the CPU: as good as the quotient, where 29 bits are then rounded off, and faster.
        parts += ["inverse = div(1.0, divisor)", each("out[i{e}] = rounded(mul(total{e}, inverse))")]
    else:
        parts += [each("out[i{e}] = div(with_lost(total{e}, lost{e}), divisor)")]
    return "\n".join(parts)
