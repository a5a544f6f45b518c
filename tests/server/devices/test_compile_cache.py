"""Compiled kernels are kept on disk: the second start compiles nothing, and no disk is no failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.children import child

PROGRAM = """
import numpy as np
from gradwire.server import jit
from gradwire.server.devices.cpu import CpuDevice
from tests.server.devices.harness import KERNEL_CONFIGS, Problem, download_state
from gradwire.wire.layout import Range

device = CpuDevice(1)
problem = Problem(3, 2, np.dtype(np.float32))
state = problem.state(device)
device.update(state, problem.gradients, problem.segments(KERNEL_CONFIGS[1]))
device.square_sums(problem.gradients, 0, [Range(0, 3)])
print(jit.compilations(), float(download_state(device, state)["params"].sum()))
"""


DOUBLE = """
import sys
import numpy as np
from gradwire.server import jit

double = jit.cpu_module("@numba.njit(@OPTIONS, cache=True)\\ndef double(x):\\n    return x + x\\n", "double")
print("ready", flush=True)
sys.stdin.readline()
print(*(double(np.dtype(dtype).type(0.75)) for dtype in sys.argv[1:]), jit.compilations())
"""


def start(cache: str, **environment: str) -> tuple[int, float, str]:
    """Compilations of a fresh process, the result it came to, and what it wrote to stderr."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"GRADWIRE_CACHE_DIR": cache, "PYTHONPATH": ".", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    compiled, total = result.stdout.split()
    return int(compiled), float(total), result.stderr


def test_second_start_compiles_nothing(tmp_path: Path) -> None:
    cold = start(str(tmp_path))
    warm = start(str(tmp_path))
    assert cold[0] == 3, "expected one kernel, its norm and its scalars"
    assert warm == (0, cold[1], "")


def test_cache_that_cannot_be_made_is_named_and_nothing_is_left_behind(tmp_path: Path) -> None:
    """A path below a regular file cannot be made by anybody, root included."""
    (tmp_path / "file").touch()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    compiled, total, stderr = start(str(tmp_path / "file" / "below"), TMPDIR=str(temporary))
    assert compiled == 3
    assert f"cannot keep compiled kernels in {tmp_path}/file/below/kernels: " in stderr
    assert "GRADWIRE_CACHE_DIR" in stderr
    assert stderr.count("\n") == 1
    assert list(temporary.iterdir()) == []
    assert total == start(str(tmp_path))[1]


def test_damaged_kernels_are_compiled_anew_and_kept_again(tmp_path: Path) -> None:
    """Empty, cut, with a bit turned, another thing in its place: whoever has that cache starts all the same."""
    cold = start(str(tmp_path))
    first, second, third = sorted((tmp_path / "kernels").iterdir())
    os.truncate(first, 0)
    os.truncate(second, second.stat().st_size // 2)
    content = bytearray(third.read_bytes())
    content[-9] ^= 1
    third.write_bytes(content)
    again = start(str(tmp_path))
    assert again[:2] == cold[:2]
    assert [again[2].count(f"cannot use the compiled kernel {path}: ") for path in (first, second, third)] == [1, 1, 1]
    assert start(str(tmp_path)) == (0, cold[1], "")


def test_types_that_two_servers_compile_at_once_are_both_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numba's own files have one index, and the server that writes it last would take the other's types out of it."""
    monkeypatch.setenv("GRADWIRE_CACHE_DIR", str(tmp_path))
    command = [sys.executable, "-c", DOUBLE]
    with child([*command, "float32"]) as one, child([*command, "float64"]) as other:
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        assert one.communicate("\n")[0] == other.communicate()[0] == "1.5 1\n"
    with child([*command, "float32", "float64"]) as later:
        assert later.communicate("\n")[0] == "ready\n1.5 1.5 0\n"
