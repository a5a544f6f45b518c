"""Source of the CPU kernel that combines: one for each float type, for any number of sources.

A tile's sums stay in the first-level cache until all sources have been added, so memory is read once and written once.
Sources are added up to four at a time: fewer passes over the sums, and more streams for the prefetchers. They come as
addresses, since numba would compile a tuple of arrays anew for each number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gradwire.server.devices import combining
from gradwire.server.jit import source_of

TILE = 1024
"""Elements. Sums and what they lose, in float64, take 16 KiB of the 32 or 48 KiB that a core has."""

TOGETHER = (4, 2, 1)
"""Sources that one pass over a tile adds."""


class _Form(NamedTuple):
    """How sums of one float type are computed."""

    functions: tuple[Callable[..., Any], ...]
    state: tuple[str, ...]
    """What is kept of each element between passes; arrays have the plural's name."""
    weighted: str
    """Adds source ``{s}``."""
    unweighted: str | None
    """The same where all weights are 1; None: no faster."""
    halving: str
    """The result where the divisor is a power of two."""
    divided: str


_NARROW = _Form(
    (combining.add_weighted,),
    ("total",),
    "total = add_weighted(total, np.float64(source{s}[i]), weight{s})",
    None,
    "np.float32(totals[i] * inverse)",
    "np.float32(totals[i] * inverse)",  # as good as the quotient, where 29 bits are then rounded off, and faster
)
_WIDE = _Form(
    (combining.add_compensated, combining.add_product, combining.with_lost),
    ("total", "lost"),
    "total, lost = add_product(total, lost, source{s}[i], weight{s})",
    "total, lost = add_compensated(total, lost, source{s}[i])",
    "with_lost(totals[i], losts[i]) * inverse",
    "with_lost(totals[i], losts[i]) / divisor",
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
def run_tile(out, {states}, addresses, weights, unweighted, divisor, halving, offset):
    """One tile of one piece; its elements lie ``offset`` bytes behind the addresses."""
    terms = addresses.shape[0]
    first = 0
    totals[:] = -0.0
    {clear}
    {unweighted}{weighted}
    inverse = 1.0 / divisor
    if halving:
        for i in range(out.shape[0]):
            out[i] = {halving}
    else:
        for i in range(out.shape[0]):
            out[i] = {divided}


@numba.njit(@OPTIONS, cache=True)
def combine(out, starts, ends, firsts, addresses, weights, divisors, unweighted, halvings, begin, stop):
    """Elements ``begin .. stop`` of the pieces, as if these lay next to each other. Addresses are a term's each."""
    {rooms}
    piece = np.searchsorted(ends, begin, side="right")
    while begin < stop:
        while ends[piece] <= begin:
            piece += 1
        n = min(stop, ends[piece], begin + {tile}) - begin
        a = starts[piece] + begin - (ends[piece - 1] if piece > 0 else 0)
        term, further = firsts[piece], firsts[piece + 1]
        run_tile(
            out[a : a + n], {tiles}, addresses[term:further], weights[term:further],
            unweighted[piece], divisors[piece], halvings[piece], a * {item_bytes},
        )
        begin += n
'''

_PASS = """
@numba.njit(@OPTIONS)
def {name}_{count}({states}, addresses, weights, offset):
    n = totals.shape[0]
    {loads}
    for i in range(n):
        {begin}
        {additions}
        {end}
"""
_LOAD = "source{s} = numba.carray(at(addresses[{s}] + offset), (n,)); weight{s} = weights[{s}]"


def combine_source(dtype: np.dtype[Any]) -> str:
    """The module text of ``combine`` for one float type."""
    form = _NARROW if dtype.itemsize == 4 else _WIDE
    arrays = [f"{name}s" for name in form.state]
    return _TEMPLATE.format(
        dtype=dtype.name,
        item_bytes=dtype.itemsize,
        tile=TILE,
        functions="\n\n".join(f"@numba.njit(@OPTIONS)\n{source_of(function)}" for function in form.functions),
        passes=_passes("unweighted", form, form.unweighted) + _passes("weighted", form, form.weighted),
        states=", ".join(arrays),
        clear="\n    ".join(f"{array}[:] = 0.0" for array in arrays[1:]),
        unweighted=f"if unweighted:\n        {_calls('unweighted', arrays, 8)}\n    " if form.unweighted else "",
        weighted=_calls("weighted", arrays, 4),
        halving=form.halving,
        divided=form.divided,
        rooms="\n    ".join(f"{array} = np.empty({TILE})" for array in arrays),
        tiles=", ".join(f"{array}[:n]" for array in arrays),
    )


def _passes(name: str, form: _Form, addition: str | None) -> str:
    """The functions that add so many terms to a tile."""
    if addition is None:
        return ""
    return "\n".join(
        _PASS.format(
            name=name,
            count=count,
            states=", ".join(f"{state}s" for state in form.state),
            loads="\n    ".join(_LOAD.format(s=s) for s in range(count)),
            begin="; ".join(f"{state} = {state}s[i]" for state in form.state),
            additions="\n        ".join(addition.format(s=s) for s in range(count)),
            end="; ".join(f"{state}s[i] = {state}" for state in form.state),
        )
        for count in TOGETHER
    )


def _calls(name: str, arrays: list[str], indent: int) -> str:
    """As many of the terms that are left at a time as there are functions for."""
    arguments = f"{', '.join(arrays)}, addresses[first:], weights[first:], offset"
    margin = "\n" + " " * indent
    return margin.join(
        f"while terms - first >= {count}:{margin}    {name}_{count}({arguments}){margin}    first += {count}"
        for count in TOGETHER
    )
