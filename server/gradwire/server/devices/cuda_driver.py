"""Source of the CUDA kernels: the same scalar update function as on the CPU, each thread with a few elements at a time.

A thread keeps its elements' state in registers through all K steps and writes it back once, or to where it is wanted.
Kernels take addresses and lengths, not numba's arrays: putting those together costs as much as the launch itself.

On contraction: the compiler behind numba.cuda fuses ``a * b + c`` into one instruction with one rounding, and
numba-cuda offers no option against it (its jit passes on only ``fastmath`` and ``opt``). Whether two operations fuse is
the compiler's choice, and so may differ between a loop's body and its unrolled copy. So the operators of the update
function are rewritten to the four functions of libdevice that are correctly rounded by definition (``__nv_fmul_rn`` and
its like), which are never fused and keep subnormals. A block of K then equals K blocks of one, and equals the CPU.
"""

from __future__ import annotations

import ast
import textwrap
from typing import Any

import numpy as np

from gradwire.server.jit import source_of
from gradwire.server.optimizers.base import Kernel

TOGETHER = 4
"""Elements that a thread takes at once: so many loads are under way while it waits for memory."""

SUM_LANES = 256
"""Threads that add the squares of a chunk; the bits of the sums depend on it."""

_UNROLLED = 8
"""Elements that a lane of a sum asks for before it adds the first of them."""

_FUNCTIONS: dict[type[ast.operator], str] = {ast.Add: "add", ast.Sub: "add", ast.Mult: "mul", ast.Div: "div"}

_GPU_ARITHMETIC = """
from numba import cuda
from numba.cuda.libdevice import {letter}add_rn as add
from numba.cuda.libdevice import {letter}div_rn as div
from numba.cuda.libdevice import {letter}mul_rn as mul
from numba.cuda.libdevice import {letter}sqrt_rn as sqrt
"""

# The simulator runs kernels as plain Python: numpy's scalars round as the GPU's functions do, math.sqrt would widen.
_SIMULATED_ARITHMETIC = """
from numba import cuda

quiet = np.errstate(all="ignore")
add = quiet(lambda a, b: a + b)
div = quiet(lambda a, b: a / b)
mul = quiet(lambda a, b: a * b)
sqrt = quiet(lambda a: np.sqrt(a))
"""

_TEMPLATE = '''{arithmetic}

@cuda.jit(device=True)
{update}


@cuda.jit(cache=True)
def kernel(
    p, {slots}, {targets_in}g, scalars, mask, out, rows, g_length, out_length, first, masked, write, out_start, g_start,
    start, stop,
):
    """``g`` is [rows, g_length], row after row, ``out`` too. ``scalars`` from ``first`` on: constants, then a row of
    varying ones an applied step."""
    {constants}
    lanes = cuda.blockDim.x
    i = start + cuda.blockIdx.x * {count} * lanes + cuda.threadIdx.x
    while i < stop:
        if i + {last} * lanes < stop:
{together}
        else:
            while i < stop:
{single}
                i += lanes
        i += cuda.gridDim.x * {count} * lanes
'''

# Unsigned indices need no look whether they count from the end.
_ELEMENTS = """
{indices}
{load}
at = np.uint64(first + {constant_count})
for k in range(rows):
    if not masked or mask[k] != 0:
        {gradients}
        {updates}
        at += np.uint64({varying_count})
    {next_gradients}
    if write == 2:
        {trajectory}
        {next_row}
if write == 1:
    {result}
{store}
"""

_SQUARE_SUMS = '''
from numba import cuda


@cuda.jit(cache=True)
def square_sums(g, edges, sums, length, first_row, rows, items):
    """sums[c * rows + r] = sum of squares of row first_row + r of g, [..., length], from edges[2 * c] to
    edges[2 * c + 1].

    One block of {lanes} lanes each. Each lane adds every {lanes}th element in order, then lanes are added pairwise: no
    atomics, one order.
    """
    lanes = cuda.shared.array({lanes}, numba.float64)
    lane = cuda.threadIdx.x
    item = cuda.blockIdx.x
    while item < items:
        chunk = item // rows
        row = (first_row + item % rows) * length
        total = 0.0
        i = row + edges[2 * chunk] + lane
        last = row + edges[2 * chunk + 1]
        while i + {further} < last:
            {loads}
            {additions}
            i += {stride}
        while i < last:
            x = {widen}(g[np.uint64(i)])
            total += x * x
            i += {lanes}
        lanes[lane] = total
        cuda.syncthreads()
        half = {lanes} // 2
        while half > 0:
            if lane < half:
                lanes[lane] += lanes[lane + half]
            cuda.syncthreads()
            half //= 2
        if lane == 0:
            sums[item] = lanes[0]
        cuda.syncthreads()
        item += cuda.gridDim.x
'''


class _ExplicitRounding(ast.NodeTransformer):
    """``a * b + c`` -> ``add(mul(a, b), c)``; ``a - b`` is ``a + (-b)``, exactly."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        function = _FUNCTIONS.get(type(node.op))
        if function is None:
            raise NotImplementedError(f"an update function may use + - * / only, not {ast.unparse(node)}")
        right = ast.UnaryOp(ast.USub(), node.right) if isinstance(node.op, ast.Sub) else node.right
        return ast.Call(ast.Name(function, ast.Load()), [node.left, right], [])

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        assert isinstance(node.target, ast.Name)
        value = ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value)
        return ast.Assign([node.target], self.visit_BinOp(value))  # type: ignore[arg-type]


def explicit_rounding(source: str) -> str:
    """The source of a function with its arithmetic written as calls of ``add``, ``mul`` and ``div``."""
    return ast.unparse(ast.fix_missing_locations(_ExplicitRounding().visit(ast.parse(source))))


def cuda_kernel_source(
    kernel: Kernel, dtype: np.dtype[Any], simulated: bool, in_place: bool, together: int = TOGETHER
) -> str:
    """The module text: ``kernel(p, *used_slots, gradients, ...)``, for one float type.

    Not ``in_place``: the vectors that receive the result follow those that it is computed from.
    """
    letter = "f" if dtype.itemsize == 4 else "d"
    arithmetic = _SIMULATED_ARITHMETIC if simulated else _GPU_ARITHMETIC.format(letter=letter)
    names = ("p", *kernel.used_slots)
    return _TEMPLATE.format(
        targets_in="" if in_place else "".join(f"target_{name}, " for name in names),
        arithmetic=arithmetic,
        update=explicit_rounding(source_of(kernel.update)),
        slots=", ".join(kernel.used_slots),
        constants="\n    ".join(f"constant{c} = scalars[first + {c}]" for c in range(kernel.constants)),
        count=together,
        last=together - 1,
        together=textwrap.indent(_elements(kernel, "" if in_place else "target_", together), 12 * " "),
        single=textwrap.indent(_elements(kernel, "" if in_place else "target_", 1), 16 * " "),
    )


def _elements(kernel: Kernel, prefix: str, count: int) -> str:
    """The body of a loop over ``count`` elements at once: all that they read is asked for before any is computed."""
    names = ("p", *kernel.used_slots)

    def each(line: str, indent: int = 0) -> str:
        return f"\n{' ' * indent}".join(line.format(e=e) for e in range(count))

    # A slot that these statics do not use gets any number of the right type.
    arguments = ["p{e}", "gradient{e}", *(f"{s}{{e}}" if s in names else "gradient{e}" for s in kernel.slots)]
    arguments += [f"constant{c}" for c in range(kernel.constants)]
    arguments += [f"scalars[at + np.uint64({v})]" for v in range(kernel.varying)]
    arguments += [str(static) for static in kernel.statics]
    results = ["p{e}", *(f"{s}{{e}}" if s in names else "_" for s in kernel.slots)]
    text = _ELEMENTS.format(
        indices="\n".join(
            each(f"{name}{{e}} = np.uint64(i + {{e}} * lanes{less}" + ")")
            for name, less in (("i", ""), ("g_at", " - g_start"), ("out_at", " - out_start"))
        ),
        load="\n".join(each(f"{name}{{e}} = {name}[i{{e}}]") for name in names),
        constant_count=kernel.constants,
        gradients=each("gradient{e} = g[g_at{e}]", 8),
        updates=each(f"{', '.join(results)} = update({', '.join(arguments)})", 8),
        varying_count=kernel.varying,
        trajectory=each("out[out_at{e}] = p{e}", 8),
        next_gradients=each("g_at{e} += np.uint64(g_length)", 4),
        next_row=each("out_at{e} += np.uint64(out_length)", 8),
        result=each("out[out_at{e}] = p{e}", 4),
        store="\n".join(each(f"{prefix}{name}[i{{e}}] = {name}{{e}}") for name in names),
    )
    return text.strip()


def square_sums_source(simulated: bool, lanes: int) -> str:
    """The module text of ``square_sums`` for blocks of ``lanes`` threads, a power of two."""
    # Python's float is the simulator's float64, and overflows without a warning; numba's float would not widen.
    widen = "float" if simulated else "np.float64"
    loads = [f"x{u} = {widen}(g[np.uint64(i + {u * lanes})])" for u in range(_UNROLLED)]
    return _SQUARE_SUMS.format(
        lanes=lanes,
        widen=widen,
        further=(_UNROLLED - 1) * lanes,
        stride=_UNROLLED * lanes,
        loads="\n            ".join(loads),
        additions="\n            ".join(f"total += x{u} * x{u}" for u in range(_UNROLLED)),
    )


def kernel_signature(kernel: Kernel, dtype: np.dtype[Any], in_place: bool) -> list[str]:
    """The types of the kernel's parameters; ``*`` is an address."""
    vectors = (1 + len(kernel.used_slots)) * (1 if in_place else 2)
    floats = f"{dtype.name}*"
    return [floats] * (vectors + 2) + ["uint8*", floats] + ["int64"] * 4 + ["boolean"] + ["int64"] * 5


def square_sums_signature(dtype: np.dtype[Any]) -> list[str]:
    """As `kernel_signature`."""
    return [f"{dtype.name}*", "int64*", "float64*"] + ["int64"] * 4
