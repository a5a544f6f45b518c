"""Compiled kernels are kept on disk: the second start compiles nothing, and no disk is no failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import numpy as np
from gradwire.server import jit
from gradwire.server.devices.cpu import CpuDevice
from tests.devices.harness import KERNEL_CONFIGS, Problem, download_state
from gradwire.wire.layout import Range

device = CpuDevice(1)
problem = Problem(3, 2, np.dtype(np.float32))
state = problem.state(device)
device.update(state, problem.gradients, problem.segments(KERNEL_CONFIGS[1]))
device.square_sums(problem.gradients, 0, [Range(0, 3)])
print(jit.compilations(), float(download_state(device, state)["params"].sum()))
"""


def start(cache: str) -> tuple[int, float, str]:
    """Compilations of a fresh process, the result it came to, and what it wrote to stderr."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"GRADWIRE_CACHE_DIR": cache, "PYTHONPATH": "."},
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


def test_unwritable_cache_warns_and_works(tmp_path: Path) -> None:
    """A path below a regular file cannot be made by anybody, root included."""
    (tmp_path / "file").touch()
    compiled, total, stderr = start(str(tmp_path / "file" / "below"))
    assert compiled == 3
    assert "RuntimeWarning: cannot write compiled kernels" in stderr
    assert "GRADWIRE_CACHE_DIR" in stderr
    assert total == start(str(tmp_path))[1]
