"""The devices that the conformance suite runs on.

``cuda`` is among them where a GPU is visible, and in a process that was started with ``NUMBA_ENABLE_CUDASIM=1``;
test_cuda_simulator.py starts such a process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from gradwire.server.devices import cpu
from gradwire.server.devices.base import Device
from tests.server.devices.harness import SIMULATED, open_named


def _gpu_visible() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()


DEVICES = ["reference", "cpu-1", "cpu-3"] + (["cuda"] if SIMULATED or _gpu_visible() else [])


@pytest.fixture(scope="package", autouse=True)
def _split_small_work() -> Iterator[None]:
    """Without it the vectors of these tests would be too small to be shared among threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "PARALLEL_WORK", 1)
        yield


@pytest.fixture(scope="package", params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = open_named(request.param)
    yield opened
    opened.close()


@pytest.fixture(scope="package")
def length(device: Device) -> int:
    """Elements of a vector: several tiles on the CPU, as few as tell anything in the slow simulator."""
    return 37 if SIMULATED else 2500
