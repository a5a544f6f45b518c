"""Source of the CPU kernel for one scalar update function.

Elements are taken in tiles that fit the first-level cache; each tile goes through all K steps before the next one is
touched, so state is read and written once per block. The first step reads the state and writes the target, later ones
work on the target; in place both are the same from the start, and the loop has to know it, or it would not vectorize.
Loops run over whole slices: numba proves then that no index is negative, without which nothing vectorizes.
"""

from __future__ import annotations

from gradwire.server.jit import source_of
from gradwire.server.optimizers.base import Kernel

TILE = 1024
"""Elements. Five float32 vectors of a tile take 20 KiB of the 32 or 48 KiB that a core has."""

LONG_TILE = 16 * TILE
"""Elements where there is one step: nothing comes again, and each tile's end costs the prefetcher a new start. On a
Xeon of 2026, 25M in one thread: 39 ms, 46 with the shorter ones; torch's fused 42."""

_TEMPLATE = '''
@numba.njit(@OPTIONS)
{update}

@numba.njit(@OPTIONS)
def copy(target, source):
    for i in range(target.shape[0]):
        target[i] = source[i]


@numba.njit(@OPTIONS)
def run_tile(p, {slots}, new_p, {new_slots}, g, constants, varying, applied, out, write, in_place, start, column):
    """All steps over one tile: gradients are in columns from ``start`` on, ``out`` is written from ``column`` on."""
    n = p.shape[0]
    j = 0
    written = in_place
    for k in range(g.shape[0]):
        if applied.shape[0] == 0 or applied[k]:
            {scalars}
            gradient = g[k][start : start + n]
            if written:
                for i in range(n):
                    {targets} = update({further_arguments})
            else:
                for i in range(n):
                    {targets} = update({first_arguments})
                written = True
            j += 1
        if write == 2:
            copy(out[k][column : column + n], new_p if written else p)
    if not written:
        copy(new_p, p)
        {copies}
    if write == 1:
        copy(out[0][column : column + n], new_p)


@numba.njit(@OPTIONS, cache=True)
def kernel(
    p, {slots}, new_p, {new_slots},
    g, constants, varying, applied, out, write, out_start, g_start, in_place, start, stop,
):
    tile = {tile} if g.shape[0] > 1 else {long_tile}
    a = start
    while a < stop:
        b = min(a + tile, stop)
        run_tile(
            p[a:b], {tiles}, new_p[a:b], {new_tiles},
            g, constants, varying, applied, out, write, in_place, a - g_start, a - out_start,
        )
        a = b
'''


def kernel_source(kernel: Kernel) -> str:
    """The module text: ``kernel(p, *used_slots, gradients, ...)`` over contiguous vectors."""
    scalars = [f"constant{c} = constants[{c}]" for c in range(kernel.constants)]
    scalars += [f"varying{v} = varying[j, {v}]" for v in range(kernel.varying)]
    used = kernel.used_slots

    def arguments(prefix: str) -> str:
        names = [f"{prefix}p[i]", "gradient[i]"]
        # A slot that these statics do not use gets any number of the right type.
        names += [f"{prefix}{slot}[i]" if slot in used else "gradient[i]" for slot in kernel.slots]
        names += [f"constant{c}" for c in range(kernel.constants)]
        names += [f"varying{v}" for v in range(kernel.varying)]
        return ", ".join(names + [str(static) for static in kernel.statics])

    return _TEMPLATE.format(
        update=source_of(kernel.update),
        slots=", ".join(used),
        new_slots=", ".join(f"new_{slot}" for slot in used),
        scalars="\n            ".join(scalars),
        targets=", ".join(["new_p[i]"] + [f"new_{slot}[i]" if slot in used else "_" for slot in kernel.slots]),
        first_arguments=arguments(""),
        further_arguments=arguments("new_"),
        copies="\n        ".join(f"copy(new_{slot}, {slot})" for slot in used),
        tile=TILE,
        long_tile=LONG_TILE,
        tiles=", ".join(f"{slot}[a:b]" for slot in used),
        new_tiles=", ".join(f"new_{slot}[a:b]" for slot in used),
    )


SQUARE_SUMS = '''
@numba.njit(@OPTIONS, cache=True)
def square_sums(g, first_row, start, stop, sums):
    """sums[k] += sum of squares of g[first_row + k, start:stop], in 256 interleaved float64 lanes, then lane by lane.

    So many lanes stay in memory and vectorize, which 16 in registers did not. np.float64 widens; float would leave a
    float32 as it is, and its square would overflow.
    """
    lanes = np.empty(256)
    if stop - start <= 256:  # the same sum, without the lanes: a long block of few elements is all overhead
        for k in range(sums.shape[0]):
            total = 0.0
            for i in range(start, stop):
                x = np.float64(g[first_row + k, i])
                total += x * x
            sums[k] += total
        return
    for k in range(sums.shape[0]):
        row = g[first_row + k][start:stop]
        total = 0.0
        lanes[:] = 0.0
        tail = row.shape[0] // 256 * 256
        for first in range(0, tail, 256):
            part = row[first : first + 256]
            for lane in range(256):
                x = np.float64(part[lane])
                lanes[lane] += x * x
        part = row[tail:]
        for lane in range(part.shape[0]):
            x = np.float64(part[lane])
            lanes[lane] += x * x
        for lane in range(256):
            total += lanes[lane]
        sums[k] += total
'''
