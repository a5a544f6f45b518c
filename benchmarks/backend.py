"""One device under measurement, with the peers that run on the same processors: torch, and a plain copy of memory."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gradwire.server.devices.base import Device, DeviceArray
from gradwire.server.devices.select import open_device
from gradwire.wire.layout import Range

FLOAT32 = np.dtype(np.float32)


def torch_device(name: str) -> torch.device:
    """Where torch keeps what belongs to the server's device ``name``; for numba's simulator of a GPU, host memory."""
    return torch.device(name if torch.cuda.is_available() else "cpu")


class Backend:
    """Args: device_name: as for ``gradwire serve``; threads: of the CPU, for all peers alike.

    Raises RuntimeError for a GPU that is not there.
    """

    def __init__(self, device_name: str, threads: int) -> None:
        self.device: Device = open_device(device_name, threads)
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self.torch_device = torch_device(self.device.name)

    def begin(self) -> None:
        """Before it is measured: how many threads torch takes is a setting of the whole process."""
        torch.set_num_threads(self.threads)

    @property
    def label(self) -> str:
        if self.device.name == "cpu":
            return f"cpu, {self.threads} thread{'s' * (self.threads > 1)}"
        return self.device.name if self.torch_device.type == "cuda" else f"{self.device.name}, SIMULATED"

    def synchronized(self, function: Callable[[], object]) -> Callable[[], None]:
        """``function``, and the wait for what it has started. Our own devices wait by themselves."""

        def call() -> None:
            function()
            if self.torch_device.type == "cuda":
                torch.cuda.synchronize(self.torch_device)

        return call

    def upload(self, values: npt.NDArray[Any]) -> DeviceArray:
        """A device array ``[rows, length]``."""
        rows, length = values.shape
        array = self.device.allocate(rows, length, FLOAT32)
        self.device.write(array, 0, values)
        return array

    def download(self, array: DeviceArray) -> npt.NDArray[Any]:
        return self.device.read(array, Range(0, array.shape[0]), Range(0, array.shape[1]))

    def tensor(self, values: npt.NDArray[Any]) -> torch.Tensor:
        """A tensor of torch's own, not shared with ``values``."""
        return torch.from_numpy(values.copy()).to(self.torch_device)

    def copier(self, size_bytes: int) -> Callable[[], None]:
        """Copies ``size_bytes`` of memory, which reads as many bytes as it writes: the floor of all that streams."""
        if self.torch_device.type == "cuda":
            gpu_source = torch.ones(size_bytes, dtype=torch.uint8, device=self.torch_device)
            gpu_target = torch.zeros_like(gpu_source)
            return self.synchronized(lambda: gpu_target.copy_(gpu_source))
        source = np.ones(size_bytes, np.uint8)
        target = np.zeros_like(source)
        part = -(-size_bytes // self.threads)
        cuts = [slice(start, start + part) for start in range(0, size_bytes, part)]

        def copy(cut: slice) -> None:
            target[cut] = source[cut]

        def copy_all() -> None:
            list(self._pool.map(copy, cuts))

        return copy_all if self.threads > 1 else lambda: copy(slice(0, size_bytes))

    def close(self) -> None:
        self.device.close()
        self._pool.shutdown()
