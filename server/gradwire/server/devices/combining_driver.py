"""Source of the CPU kernel that combines: one for each float type, for any number of sources.

Some sources are read side by side and their sum is written at once, at the speed of memory. With more, the sums of a
tile stay in the first-level cache until all sources have been added. These come as addresses, since numba would compile
a tuple of arrays anew for each number of workers. Squares of what comes out are summed while it is in the cache.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gradwire.server.devices import combining
from gradwire.server.devices.chunks import NORM_CHUNK
from gradwire.server.jit import source_of

TILE = 1024
"""Elements. Sums and what they lose, in float64, take 16 KiB of the 32 or 48 KiB that a core has."""

LONG_TILE = 16 * TILE
"""Elements, where nothing comes again: each tile's end costs the prefetchers a new start."""

_LANES = 256
"""As in `driver.SQUARE_SUMS`, whose bits these sums have."""


class _Form(NamedTuple):
    """How sums of one float type are computed."""

    functions: tuple[Callable[..., Any], ...]
    state: tuple[str, ...]
    """What is kept of each element between passes; arrays have the plural's name."""
    together: int
    """Sources that one pass adds: fewer passes over the sums, and more streams for the prefetchers; but each further
    one is compiled several times."""
    additions: dict[str, str]
    """Adds source ``{s}``: for any weights, and where there is a faster way, for weights of 1."""
    result: str


_NARROW = _Form(
    (combining.add_weighted,),
    ("total",),
    8,
    {"weighted": "total = add_weighted(total, np.float64(source{s}[i]), weight{s})"},
    "np.float32(total * inverse)",  # as good as the quotient, where 29 bits are then rounded off, and faster
)
_WIDE = _Form(
    (combining.add_compensated, combining.add_product, combining.with_lost),
    ("total", "lost"),
    4,
    {
        "weighted": "total, lost = add_product(total, lost, source{s}[i], weight{s})",
        "unweighted": "total, lost = add_compensated(total, lost, source{s}[i])",
    },
    "with_lost(total, lost) / divisor",
)

_TEMPLATE = '''
from numba.extending import intrinsic


@intrinsic
def at(typing_context, address):
    """The pointer to numbers of the run's dtype."""
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
    return numba.types.CPointer(numba.types.{dtype})(numba.types.int64), generate


{functions}
{passes}

@numba.njit(@OPTIONS)
def run_tile(out, {states}, addresses, weights, unweighted, divisor, offset):
    """One tile of one piece; its elements lie ``offset`` bytes behind the addresses."""
    inverse = 1.0 / divisor
    terms = addresses.shape[0]
    {calls}


@numba.njit(@OPTIONS)
def add_squares(row, lanes):
    tail = row.shape[0] // {lanes} * {lanes}
    for first in range(0, tail, {lanes}):
        part = row[first : first + {lanes}]
        for lane in range({lanes}):
            x = np.float64(part[lane])
            lanes[lane] += x * x
    part = row[tail:]
    for lane in range(part.shape[0]):
        x = np.float64(part[lane])
        lanes[lane] += x * x


@numba.njit(@OPTIONS, cache=True)
def combine(out, starts, ends, firsts, addresses, weights, divisors, unweighted, sums, begin, stop):
    """Elements ``begin .. stop`` of the pieces, as if these lay next to each other. Addresses are a term's each.

    ``sums`` is empty, or has room for the sum of squares of each chunk. Then there is one piece, which begins where a
    chunk does, and so do ``begin`` and ``stop``, but at the end.
    """
    {rooms}
    lanes = np.zeros({lanes} if sums.shape[0] > 0 else 0)
    piece = np.searchsorted(ends, begin, side="right")
    while begin < stop:
        while ends[piece] <= begin:
            piece += 1
        term, further = firsts[piece], firsts[piece + 1]
        tile = {long_tile} if further - term <= {together} else {tile}
        n = min(stop, ends[piece], begin + tile) - begin
        a = starts[piece] + begin - (ends[piece - 1] if piece > 0 else 0)
        run_tile(
            out[a : a + n], {tiles}, addresses[term:further], weights[term:further], unweighted[piece],
            divisors[piece], a * {item_bytes},
        )
        begin += n
        if sums.shape[0] > 0:
            add_squares(out[a : a + n], lanes)
            if begin % {chunk} == 0 or begin == ends[piece]:
                total = 0.0
                for lane in range({lanes}):
                    total += lanes[lane]
                sums[(begin - 1) // {chunk}] = total
                lanes[:] = 0.0
'''

_PASS = """

@numba.njit(@OPTIONS)
def {name}_{count}(out, {states}, addresses, weights, divisor, inverse, offset):
    n = out.shape[0]
    {loads}
    for i in range(n):
        {begin}
        {additions}
        {end}
"""
_LOAD = "source{s} = numba.carray(at(addresses[{s}] + offset), (n,)); weight{s} = weights[{s}]"

_CALLS = """
if {condition}:
    first = 0
    if terms <= {together}:
        {whole}
    else:
        {name}_first_{together}({arguments})
        first = {together}
        while terms - first > {together}:
            {name}_middle_{together}({arguments})
            first += {together}
        {last}
"""


def combine_source(dtype: np.dtype[Any]) -> str:
    """The module text of ``combine`` for one float type."""
    form = _NARROW if dtype.itemsize == 4 else _WIDE
    arrays = [f"{name}s" for name in form.state]
    both = len(form.additions) > 1
    conditions = {"weighted": "not unweighted" if both else "True", "unweighted": "unweighted"}
    return _TEMPLATE.format(
        dtype=dtype.name,
        item_bytes=dtype.itemsize,
        tile=TILE,
        long_tile=LONG_TILE,
        together=form.together,
        lanes=_LANES,
        chunk=NORM_CHUNK,
        functions="\n\n".join(f"@numba.njit(@OPTIONS)\n{source_of(function)}" for function in form.functions),
        passes="".join(_passes(name, form, addition) for name, addition in form.additions.items()),
        states=", ".join(arrays),
        calls="\n    ".join(_calls(name, form, ", ".join(arrays), conditions[name]) for name in form.additions),
        rooms="\n    ".join(f"{array} = np.empty({TILE})" for array in arrays),
        tiles=", ".join(f"{array}[:n]" for array in arrays),
    )


def _passes(name: str, form: _Form, addition: str) -> str:
    """The functions that add sources to a tile: all there are, the first ones, some, the last ones."""
    zero = "total = -0.0; lost = 0.0"
    load, store = ("; ".join(form_of.format(s) for s in form.state) for form_of in ("{0} = {0}s[i]", "{0}s[i] = {0}"))
    result = f"out[i] = {form.result}"
    upto = range(1, form.together + 1)
    kinds = [("whole", count, zero, result) for count in upto] + [("last", count, load, result) for count in upto]
    kinds += [("first", form.together, zero, store), ("middle", form.together, load, store)]
    return "".join(
        _PASS.format(
            name=f"{name}_{kind}",
            count=count,
            states=", ".join(f"{state}s" for state in form.state),
            loads="\n    ".join(_LOAD.format(s=s) for s in range(count)),
            begin=begin,
            additions="\n        ".join(addition.format(s=s) for s in range(count)),
            end=end,
        )
        for kind, count, begin, end in kinds
    )


def _calls(name: str, form: _Form, states: str, condition: str) -> str:
    """Of those functions, until all terms of a tile have been added."""
    arguments = f"out, {states}, addresses[first:], weights[first:], divisor, inverse, offset"

    def any_of(kind: str) -> str:
        cases = (
            f"if terms - first == {count}:\n            {name}_{kind}_{count}({arguments})"
            for count in range(1, form.together + 1)
        )
        return "\n        ".join(cases)

    text = _CALLS.format(
        name=name,
        condition=condition,
        together=form.together,
        arguments=arguments,
        whole=any_of("whole"),
        last=any_of("last"),
    )
    return textwrap.indent(text.strip(), "    ").strip()
