"""The generated CUDA source: arithmetic whose rounding is spelled out."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gradwire.server.devices.cuda_driver import cuda_kernel_source, explicit_rounding, square_sums_source
from gradwire.server.optimizers.adam import AdamHyperparameters


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a * b + c", "add(mul(a, b), c)"),
        ("a - b / c", "add(a, -div(b, c))"),
        ("a - b - c", "add(add(a, -b), -c)"),
        ("sqrt(a * b)", "sqrt(mul(a, b))"),
        ("-a * b", "mul(-a, b)"),
    ],
)
def test_operators_become_calls(written: str, expected: str) -> None:
    source = f"def update(a, b, c):\n    return {written}"
    assert ast.unparse(ast.parse(explicit_rounding(source))) == f"def update(a, b, c):\n    return {expected}"


def test_augmented_assignment_becomes_a_call() -> None:
    assert "a = add(a, -mul(b, b))" in explicit_rounding("def update(a, b):\n    a -= b * b\n    return a")


def test_other_operators_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=re.escape("not a ** 2")):
        explicit_rounding("def update(a):\n    return a ** 2")


@pytest.mark.parametrize(("dtype", "letter"), [(np.float32, "f"), (np.float64, "d")])
def test_gpu_kernel_uses_the_functions_of_its_type(dtype: type, letter: str) -> None:
    source = cuda_kernel_source(
        AdamHyperparameters(amsgrad=True).kernel, np.dtype(dtype), simulated=False, in_place=True
    )
    assert set(re.findall(r"import (\w+)_rn as", source)) == {
        f"{letter}{name}" for name in ("add", "div", "mul", "sqrt")
    }
    (update,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == "update")
    operators = [type(node.op).__name__ for node in ast.walk(update) if isinstance(node, ast.BinOp)]
    assert operators == [], "an operator is left that the compiler may contract"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_combining_spells_out_every_rounding(dtype: type) -> None:
    """In float64, whatever the run's dtype; and nothing of it is computed otherwise in the kernel itself."""
    from gradwire.server.devices.cuda_combining import cuda_combine_source

    source = cuda_combine_source(np.dtype(dtype), simulated=False)
    assert set(re.findall(r"import (\w+)_rn as", source)) == {"dadd", "ddiv", "dmul"}
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    kernel = functions.pop("combine")
    assert len(functions) == (1 if dtype is np.float32 else 3)
    for function in functions.values():
        assert [node for node in ast.walk(function) if isinstance(node, ast.BinOp)] == []
    computed = {
        name.id
        for node in ast.walk(kernel)
        if isinstance(node, ast.BinOp)
        for name in ast.walk(node)
        if isinstance(name, ast.Name)
    }
    assert computed <= {"start", "cuda", "lanes", "i"}, "indices alone"


def test_a_numpy_without_row_stack_gets_it_back() -> None:
    """numba-cuda asks for it when it compiles its first kernel; numpy 2.5 has dropped it."""
    program = """
import numpy as np
vars(np).pop("row_stack", None)
import gradwire.server.devices.cuda_runtime
print(np.row_stack is np.vstack)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_generated_source_is_valid_python_for_every_kernel() -> None:
    for simulated in (False, True):
        for amsgrad in (False, True):
            kernel = AdamHyperparameters(amsgrad=amsgrad).kernel
            for in_place in (False, True):
                ast.parse(cuda_kernel_source(kernel, np.dtype(np.float32), simulated, in_place))
        ast.parse(square_sums_source(simulated, 256))


def test_kernels_are_made_once_though_threads_ask_for_them_at_once() -> None:
    """numba cannot put the same module on a GPU from two threads: seen on a card."""
    from gradwire.server.devices.cuda_runtime import made_once

    together = threading.Barrier(4)
    made: list[int] = []

    @made_once
    def make(number: int) -> object:
        made.append(number)
        time.sleep(0.01)  # the others get here meanwhile, if they can
        return object()

    def ask(_: int) -> tuple[object, object]:
        together.wait(30)
        return make(1), make(2)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert sorted(made) == [1, 2]
    assert len(set(found)) == 1
