"""Source of the CUDA kernels: the same scalar update function as on the CPU, one thread per element.

A thread keeps its element's state in registers through all K steps and writes it back once, or to where it is wanted.

On contraction: the compiler behind numba.cuda fuses ``a * b + c`` into one instruction with one rounding, and
numba-cuda offers no option against it (its jit passes on only ``fastmath`` and ``opt``). Whether two operations fuse is
the compiler's choice, and so may differ between a loop's body and its unrolled copy. So the operators of the update
function are rewritten to the four functions of libdevice that are correctly rounded by definition (``__nv_fmul_rn`` and
its like), which are never fused and keep subnormals. A block of K then equals K blocks of one, and equals the CPU.
"""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from gradwire.server.jit import source_of
from gradwire.server.optimizers.base import Kernel

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
def kernel(p, {slots}, {targets_in}g, scalars, first, mask, masked, out, write, out_start, g_start, start, stop):
    """``scalars`` from ``first`` on: the constants, then a row of varying scalars for each applied step."""
    {constants}
    i = start + cuda.grid(1)
    while i < stop:
        new_p = p[i]
        {load}
        at = first + {constant_count}
        for k in range(g.shape[0]):
            if not masked or mask[k]:
                gradient = g[k, i - g_start]
                {targets} = update({arguments})
                at += {varying_count}
            if write == 2:
                out[k, i - out_start] = new_p
        if write == 1:
            out[0, i - out_start] = new_p
        {store}
        i += cuda.gridsize(1)
'''

_SQUARE_SUMS = '''
from numba import cuda


@cuda.jit(cache=True)
def square_sums(g, first_row, starts, stops, sums):
    """sums[c, r] = sum of squares of g[first_row + r, starts[c]:stops[c]]: one block of {lanes} lanes each.

    Each lane adds every {lanes}th element in order, then lanes are added pairwise: no atomics, one order.
    """
    lanes = cuda.shared.array({lanes}, numba.float64)
    lane = cuda.threadIdx.x
    rows = sums.shape[1]
    item = cuda.blockIdx.x
    while item < sums.shape[0] * rows:
        chunk = item // rows
        row = item % rows
        total = 0.0
        for i in range(starts[chunk] + lane, stops[chunk], {lanes}):
            x = {widen}(g[first_row + row, i])
            total += x * x
        lanes[lane] = total
        cuda.syncthreads()
        half = {lanes} // 2
        while half > 0:
            if lane < half:
                lanes[lane] += lanes[lane + half]
            cuda.syncthreads()
            half //= 2
        if lane == 0:
            sums[chunk, row] = lanes[0]
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


def cuda_kernel_source(kernel: Kernel, dtype: np.dtype[Any], simulated: bool, in_place: bool) -> str:
    """The module text: ``kernel(p, *used_slots, gradients, ...)``, for one float type.

    Not ``in_place``: the vectors that receive the result follow those that it is computed from.
    """
    letter = "f" if dtype.itemsize == 4 else "d"
    arithmetic = _SIMULATED_ARITHMETIC if simulated else _GPU_ARITHMETIC.format(letter=letter)
    used = kernel.used_slots
    arguments = ["new_p", "gradient"]
    # A slot that these statics do not use gets any number of the right type.
    arguments += [f"new_{slot}" if slot in used else "gradient" for slot in kernel.slots]
    arguments += [f"constant{c}" for c in range(kernel.constants)]
    arguments += [f"scalars[at + {v}]" for v in range(kernel.varying)]
    arguments += [str(static) for static in kernel.statics]
    prefix = "" if in_place else "target_"
    return _TEMPLATE.format(
        targets_in="" if in_place else "".join(f"target_{name}, " for name in ("p", *used)),
        arithmetic=arithmetic,
        update=explicit_rounding(source_of(kernel.update)),
        slots=", ".join(used),
        constants="\n    ".join(f"constant{c} = scalars[first + {c}]" for c in range(kernel.constants)),
        constant_count=kernel.constants,
        varying_count=kernel.varying,
        load="\n        ".join(f"new_{slot} = {slot}[i]" for slot in used),
        targets=", ".join(["new_p"] + [f"new_{slot}" if slot in used else "_" for slot in kernel.slots]),
        arguments=", ".join(arguments),
        store="\n        ".join(f"{prefix}{name}[i] = new_{name}" for name in ("p", *used)),
    )


def square_sums_source(lanes: int, simulated: bool) -> str:
    """The module text of ``square_sums`` for blocks of ``lanes`` threads, a power of two."""
    # Python's float is the simulator's float64, and overflows without a warning; numba's float would not widen.
    return _SQUARE_SUMS.format(lanes=lanes, widen="float" if simulated else "np.float64")
