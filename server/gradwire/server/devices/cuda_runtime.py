"""Where CUDA kernels run: a GPU, or numba's simulator of one. Contexts, streams, and memory as a kernel takes it.

Importing this module needs the extra ``cuda``. The simulator (``NUMBA_ENABLE_CUDASIM=1`` before numba is imported) is
how kernels are tested where there is no GPU: tensors then lie in host memory and kernels run as plain Python.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.cuda_driver import SUM_LANES

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

T = TypeVar("T")

SIMULATED = bool(cuda.config.ENABLE_CUDASIM)


class Lane(threading.local):
    """What each thread has of its own: its stream, and a little memory that what it does next may overwrite."""

    def __init__(self) -> None:
        self.stream: Any = None
        self.launch_stream: Any = None
        self.buffers: dict[torch.dtype, torch.Tensor] = {}


class _Entered(threading.local):
    """Which GPU a thread has set up itself for. Entering and leaving a stream anew costs more than a small copy."""

    gpu: Gpu | None = None


_entered = _Entered()


class Gpu:
    """One GPU. Raises RuntimeError when it is not there, or when torch or numba-cuda cannot use it.

    A thread that has once worked here keeps the GPU and its lane's stream as torch's and numba's current ones.
    """

    threads = 128
    max_blocks = 2**31 - 1
    sum_lanes = SUM_LANES
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
        if _entered.gpu is not self:
            self._enter()
        try:
            yield
        finally:
            self.wait()

    def _enter(self) -> None:
        lane = self.lane
        torch.cuda.set_device(self.device)
        cuda.select_device(self.device.index)
        if lane.stream is None:
            lane.stream = torch.cuda.Stream(self.device)
            core = importlib.import_module("cuda.core")
            lane.launch_stream = core.Stream.from_handle(lane.stream.cuda_stream)
        torch.cuda.set_stream(lane.stream)
        _entered.gpu = self

    def wait(self) -> None:
        """Within a section: for all that it has begun."""
        self.lane.stream.synchronize()

    def argument(self, tensor: torch.Tensor) -> Any:
        """What a kernel takes for a contiguous tensor."""
        return tensor.data_ptr()

    def pointers(self, tensors: Sequence[torch.Tensor]) -> Any:
        """What `argument` takes for contiguous tensors together, of which a kernel reads one after another."""
        return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64, device=self.device)

    def launch(self, kernel: Any, blocks: int, threads: int, *arguments: Any) -> None:
        kernel.launch(arguments, min(blocks, self.max_blocks), threads, self.lane.launch_stream)

    def pin(self, address: int, size_bytes: int) -> bool:
        """Whether the host's memory there can now be copied from and to at full speed; `unpin` is to be called."""
        driver = importlib.import_module("cuda.bindings.driver")
        (error,) = driver.cuMemHostRegister(address, size_bytes, driver.CU_MEMHOSTREGISTER_PORTABLE)
        return bool(error == driver.CUresult.CUDA_SUCCESS)

    def unpin(self, address: int) -> None:
        importlib.import_module("cuda.bindings.driver").cuMemHostUnregister(address)


class Simulator:
    """The same face for numba's simulator: torch tensors in host memory, kernels as Python over numpy arrays."""

    threads = 4
    max_blocks = 2
    sum_lanes = 4
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

    def argument(self, tensor: Any) -> Any:
        return tensor if isinstance(tensor, list) else tensor.numpy().reshape(-1)

    def pointers(self, tensors: Sequence[torch.Tensor]) -> list[npt.NDArray[Any]]:
        return [self.argument(tensor) for tensor in tensors]

    def launch(self, kernel: Any, blocks: int, threads: int, *arguments: Any) -> None:
        with self._one_at_a_time:
            kernel[min(blocks, self.max_blocks), threads](*arguments)

    def pin(self, address: int, size_bytes: int) -> bool:
        return True

    def unpin(self, address: int) -> None:
        """Nothing was done."""


def compiled(dispatcher: Any, signature: Sequence[str]) -> Any:
    """The kernel for parameters of these types, ``*`` being an address, compiled or loaded now; within a section."""
    if SIMULATED:
        return dispatcher
    kernel = dispatcher.compile(tuple(map(_parameter, signature)))
    kernel.bind()  # what comes from the disk would be put on the GPU by its first launch, which may be two at once
    return kernel


def _parameter(name: str) -> Any:
    """numba's type of that name, or, with a ``*``, of the address of one."""
    return cuda.types.CPointer(_parameter(name[:-1])) if name.endswith("*") else getattr(cuda.types, name)


def made_once(make: Callable[..., T]) -> Callable[..., T]:
    """As `functools.cache`, for what two threads must not make at the same time: numba loads no module twice."""
    made: dict[tuple[object, ...], T] = {}
    lock = threading.Lock()

    def get(*key: object) -> T:
        try:
            return made[key]
        except KeyError:
            with lock:
                if key not in made:
                    made[key] = make(*key)
                return made[key]

    return get


def open_runtime(index: int) -> Gpu | Simulator:
    """Raises RuntimeError when there is no such GPU, or when torch or numba-cuda cannot use it."""
    return Simulator(index) if SIMULATED else Gpu(index)
