"""The CUDA device's conformance where there is no GPU: the same suite in a process with numba's simulator.

numba decides at import whether it simulates, so it takes a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.devices.conftest import DEVICES

ROOT = Path(__file__).parents[3]
SUITE = [
    "test_update.py",
    "test_memory.py",
    "test_host_memory.py",
    "test_square_sums.py",
    "test_clip.py",
    "test_combine.py",
    "test_parity.py",
    "test_other_optimizers.py",
    "test_cuda_source.py",
]


@pytest.mark.skipif("cuda" in DEVICES, reason="this process runs the suite on a GPU, or is the simulator's")
@pytest.mark.timeout(300)
def test_cuda_device_conforms_in_the_simulator() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda", "-p", "no:cacheprovider"]
    result = subprocess.run(
        command + [f"tests/server/devices/{name}" for name in SUITE],
        cwd=ROOT,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    # A suite that was not collected would pass as well.
    assert int(result.stdout.split(" passed")[0].split()[-1]) > 100, result.stdout[-2000:]
