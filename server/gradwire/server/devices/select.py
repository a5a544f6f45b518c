"""Devices by name."""

from __future__ import annotations

import ctypes
import importlib.util
import re

from gradwire.server.devices.base import Device
from gradwire.server.devices.cpu import CpuDevice

_CUDA = re.compile(r"cuda(?::(\d{1,3}))?", re.ASCII)


def open_device(name: str, threads: int | None = None) -> Device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. ``threads`` is the CPU device's; None: one for
    each processor that this process may use.

    ``auto`` is the first GPU where one can be used, else the CPU. Raises ValueError for another name, RuntimeError for
    a GPU that is not there or lacks its packages.
    """
    if name == "cpu":
        return CpuDevice(threads)
    if name == "auto":
        return _first_gpu() or CpuDevice(threads)
    match = _CUDA.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no device; expected auto, cpu, cuda or cuda:N, N being the number of a GPU")
    from gradwire.server.devices.cuda import CudaDevice

    return CudaDevice(int(match[1] or 0))


def _first_gpu() -> Device | None:
    """None where there is no usable GPU. torch is imported only if it is installed and NVIDIA's driver loads."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("numba_cuda") is None:
        return None
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    from gradwire.server.devices.cuda import CudaDevice

    try:
        return CudaDevice()
    except RuntimeError:
        return None
