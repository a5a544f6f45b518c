"""Devices by name, and what a machine without GPU, torch or numba-cuda is told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.devices.select import open_device
from tests.server.devices.conftest import DEVICES

without_gpu = pytest.mark.skipif("cuda" in DEVICES, reason="there is a GPU")


def run(program: str) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_cpu_with_a_number_of_threads() -> None:
    device = open_device("cpu", threads=3)
    assert isinstance(device, CpuDevice)
    assert (device.name, device.threads) == ("cpu", 3)
    device.close()


@without_gpu
def test_auto_without_a_gpu_is_the_cpu() -> None:
    device = open_device("auto", threads=1)
    assert isinstance(device, CpuDevice)
    assert device.threads == 1


@without_gpu
@pytest.mark.parametrize("name", ["cpu", "auto"])
def test_cpu_server_imports_no_torch(name: str) -> None:
    program = f"""
import sys
from gradwire.server.devices.select import open_device
open_device({name!r})
print([module for module in ("torch", "numba.cuda", "grpc") if module in sys.modules])
"""
    assert run(program) == "[]"


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "cuda:1 ", "cuda:٣"])
def test_bad_name_says_what_was_expected(name: str) -> None:
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
        open_device(name)


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_cuda_without_a_gpu_says_what_is_missing(name: str) -> None:
    with pytest.raises(RuntimeError, match="CUDA"):
        open_device(name)


@pytest.mark.parametrize("missing", ["torch", "numba_cuda"])
def test_cuda_without_its_packages_names_the_extra(missing: str) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
from gradwire.server.devices.select import open_device
try:
    open_device("cuda")
except RuntimeError as error:
    print(error)
"""
    found = run(program)
    assert missing in found
    assert 'pip install "gradwire[cuda]"' in found
