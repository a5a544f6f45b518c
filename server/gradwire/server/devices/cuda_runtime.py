"""Where CUDA kernels run: a GPU, or numba's simulator of one. Contexts, streams and how numba sees torch's memory.

Importing this module needs the extra ``cuda``. The simulator (``NUMBA_ENABLE_CUDASIM=1`` before numba is imported) is
how kernels are tested where there is no GPU: tensors then lie in host memory and kernels run as plain Python.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

# numba-cuda (0.30 is the newest) names an alias of vstack that numpy 2.5 has dropped, and compiles nothing without it.
vars(np).setdefault("row_stack", np.vstack)

_INSTALL = 'install the extra: pip install "gradwire[cuda]"'
try:
    import torch as torch  # cuda.py takes it from here, so that this check comes first

    # Asked for by its own name: without it, numba falls back to a built-in target that nobody maintains.
    NUMBA_CUDA_VERSION: str = importlib.import_module("numba_cuda").__version__
except ImportError as error:
    raise RuntimeError(f"the CUDA device needs torch and numba-cuda ({error}); {_INSTALL}") from error
cuda: Any = importlib.import_module("numba.cuda")

SIMULATED = bool(cuda.config.ENABLE_CUDASIM)


class CudaArray:
    """Memory of torch's, and what numba makes of it, made once: that costs as much as a small kernel."""

    __slots__ = ("tensor", "view")

    def __init__(self, tensor: torch.Tensor, view: Any) -> None:
        self.tensor = tensor
        self.view = view

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)


class Lane(threading.local):
    """What each thread has of its own: its stream, and a little memory that what it does next may overwrite."""

    def __init__(self) -> None:
        self.stream: Any = None
        self.numba_stream: Any = None
        self.buffers: dict[torch.dtype, CudaArray] = {}


class Gpu:
    """One GPU. Raises RuntimeError when it is not there, or when torch or numba-cuda cannot use it."""

    threads = 256
    max_blocks = 4096  # kernels stride over what is left
    pinned = True

    def __init__(self, index: int) -> None:
        if torch.version.cuda is None:
            raise RuntimeError(f"this torch ({torch.__version__}) is built without CUDA; {_INSTALL} with a CUDA torch")
        visible = torch.cuda.device_count()
        if index >= visible:
            raise RuntimeError(f"cuda:{index} is not there: {visible or 'no'} CUDA GPU is visible to this process")
        if not cuda.is_available():
            raise RuntimeError(f"numba-cuda finds no CUDA driver or toolkit ({cuda.cuda_error()}); {_INSTALL}")
        self.device = torch.device("cuda", index)
        self.lane = Lane()
        # A small run fills no GPU, and numba would warn about each of its launches.
        cuda.dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

    @contextmanager
    def section(self) -> Iterator[None]:
        """Work of this thread, on a stream of its own; finished when the section ends."""
        lane = self.lane
        if lane.stream is None:
            lane.stream = torch.cuda.Stream(self.device)
            lane.numba_stream = cuda.external_stream(lane.stream.cuda_stream)
        with torch.cuda.stream(lane.stream), cuda.gpus[self.device.index]:
            try:
                yield
            finally:
                self.wait()

    def wait(self) -> None:
        """Within a section: for all that it has begun."""
        self.lane.stream.synchronize()

    def array(self, tensor: torch.Tensor) -> CudaArray:
        return CudaArray(tensor, cuda.as_cuda_array(tensor, sync=False))

    def launch(self, kernel: Any, blocks: int, *arguments: Any) -> None:
        kernel[min(blocks, self.max_blocks), self.threads, self.lane.numba_stream](*arguments)


class Simulator:
    """The same face for numba's simulator: torch tensors in host memory, kernels as Python over numpy arrays."""

    threads = 4
    max_blocks = 2
    pinned = False
    _one_at_a_time = threading.Lock()

    def __init__(self, index: int) -> None:
        self.device = torch.device("cpu")
        self.lane = Lane()

    @contextmanager
    def section(self) -> Iterator[None]:
        yield

    def wait(self) -> None:
        """Everything is done when it is called."""

    def array(self, tensor: torch.Tensor) -> CudaArray:
        return CudaArray(tensor, tensor.numpy())

    def launch(self, kernel: Any, blocks: int, *arguments: Any) -> None:
        with self._one_at_a_time:
            kernel[min(blocks, self.max_blocks), self.threads](*arguments)


def open_runtime(index: int) -> Gpu | Simulator:
    """Raises RuntimeError when there is no such GPU, or when torch or numba-cuda cannot use it."""
    return Simulator(index) if SIMULATED else Gpu(index)
