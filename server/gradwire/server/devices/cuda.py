"""The CUDA device: torch owns the memory and the streams, numba.cuda compiles the kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server import jit
from gradwire.server.devices import cuda_driver
from gradwire.server.devices.base import Bools, Device, DeviceArray, Segment, State, Write, chunks_of
from gradwire.server.devices.cuda_driver import TOGETHER, cuda_kernel_source, square_sums_source
from gradwire.server.devices.cuda_runtime import NUMBA_CUDA_VERSION, SIMULATED, CudaArray, open_runtime, torch
from gradwire.server.optimizers.base import Floats, Kernel
from gradwire.wire.layout import Range

STAGING_BYTES = 16 * 2**20
"""Copies from the host pass through pinned memory in parts of this size; torch keeps and reuses it."""

SMALL_BYTES = 32 * 2**10
"""Copies up to this size need no pinned memory: the driver takes them along with the command."""

SCRATCH_ELEMENTS = 4096
"""What a call needs for its own end on the device is kept up to this size, since making it anew takes a while."""

_TORCH_DTYPES: dict[np.dtype[Any], torch.dtype] = {
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.bool_): torch.bool,
}
_NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {ours: theirs for theirs, ours in _TORCH_DTYPES.items()}


class CudaDevice(Device):
    """Args: index: which of the GPUs that this process sees.

    Raises RuntimeError when there is no such GPU, or when torch or numba-cuda cannot use it.
    """

    kernel_modules = (cuda_driver,)

    def __init__(self, index: int = 0) -> None:
        self._runtime = open_runtime(index)
        self.name = f"cuda:{index}"

    def allocate(self, rows: int, length: int, dtype: np.dtype[Any]) -> DeviceArray:
        with self._runtime.section():
            return self._array(torch.zeros, rows, length, _TORCH_DTYPES[dtype])

    def write(self, target: DeviceArray, offset: int, values: npt.NDArray[Any]) -> None:
        with self._runtime.section():
            self._write(target.tensor, offset, values)

    def stage(self, values: npt.NDArray[Any], dtype: np.dtype[Any]) -> DeviceArray:
        with self._runtime.section():
            rows, length = values.shape
            array = self._array(torch.empty, rows, length, _TORCH_DTYPES[dtype])
            self._write(array.tensor, 0, values)
        return array

    def read(self, source: DeviceArray, rows: Range, columns: Range) -> Floats:
        part = source.tensor[rows.start : rows.stop, columns.start : columns.stop]
        height, length = part.shape
        with self._runtime.section():
            if part.nbytes <= STAGING_BYTES:
                return self._fetch(part)
            result: Floats = np.empty((height, length), _NUMPY_DTYPES[part.dtype])
            for a, b in _parts(height, length, part.itemsize):
                result[:, a:b] = self._fetch(part[:, a:b])
        return result

    def copy(self, source: DeviceArray, into: DeviceArray | None = None) -> DeviceArray:
        with self._runtime.section():
            if into is None:
                return self._runtime.array(source.tensor.clone())
            into.tensor.copy_(source.tensor)
            return into

    def chunk_sums(
        self, gradients: DeviceArray, first_row: int, ranges: Sequence[Range], start: int = 0
    ) -> npt.NDArray[np.float64]:
        with self._runtime.section():
            return self._chunk_sums(gradients, first_row, ranges, start)

    def clip(
        self,
        gradients: DeviceArray,
        ranges: Sequence[Range],
        *,
        max_value: float | None = None,
        factors: Floats | None = None,
    ) -> None:
        with self._runtime.section():
            scale = None
            if factors is not None and (factors != 1).any():
                scale = torch.from_numpy(factors).to(self._runtime.device)[:, None]
            for start, stop in ranges:
                part = gradients.tensor[:, start:stop]
                if max_value is not None:
                    part.clamp_(-max_value, max_value)
                if scale is not None:
                    part.mul_(scale)

    def update(
        self,
        state: State,
        gradients: DeviceArray,
        segments: Sequence[Segment],
        *,
        target: State | None = None,
        start: int = 0,
        applied: Bools | None = None,
        out: DeviceArray | None = None,
        out_start: int = 0,
        write: Write = Write.NOTHING,
    ) -> None:
        segments = [segment for segment in segments if segment.start < segment.stop]
        if not segments:
            return
        with self._runtime.section():
            firsts, scalars = _pack(segments)
            uploaded = self._upload(scalars)
            masked = applied is not None
            mask = self._upload(applied) if applied is not None else self._scratch(1, torch.bool)
            written = uploaded if out is None else out  # not written without `write`, but of the type that is compiled
            for segment, first in zip(segments, firsts, strict=True):
                used = segment.kernel.used_slots
                vectors = [state.params, *[state.slots[name] for name in used]]
                if target is not None:
                    vectors += [target.params, *[target.slots[name] for name in used]]
                arrays = [array.view for array in (*vectors, gradients, uploaded, mask, written)]
                where = (first, masked, int(write), out_start, start, segment.start, segment.stop)
                kernel = _kernel(segment.kernel, scalars.dtype, target is None)
                blocks = -(-(segment.stop - segment.start) // (self._runtime.threads * TOGETHER))
                self._runtime.launch(kernel, blocks, *arrays, *where)

    # What follows runs inside a section.

    def _array(self, make: Callable[..., torch.Tensor], rows: int, length: int, dtype: torch.dtype) -> CudaArray:
        return self._runtime.array(make((rows, length), dtype=dtype, device=self._runtime.device))

    def _scratch(self, elements: int, dtype: torch.dtype) -> CudaArray:
        """``[1, elements]`` or more, of any values, for what ends with the section; of each type one at a time."""
        if elements > SCRATCH_ELEMENTS:
            return self._array(torch.empty, 1, elements, dtype)
        buffers = self._runtime.lane.buffers
        if dtype not in buffers:
            buffers[dtype] = self._array(torch.zeros, 1, SCRATCH_ELEMENTS, dtype)
        return buffers[dtype]

    def _upload(self, values: npt.NDArray[Any]) -> CudaArray:
        """A scratch array that begins with ``values`` ``[n]``."""
        array = self._scratch(values.size, _TORCH_DTYPES[values.dtype])
        array.tensor[0, : values.size].copy_(torch.from_numpy(values))
        return array

    def _write(self, target: torch.Tensor, offset: int, values: npt.NDArray[Any]) -> None:
        rows, length = values.shape
        dtype = _NUMPY_DTYPES[target.dtype]
        with np.errstate(over="ignore"):  # float64 values too large for a float32 run become infinities
            if values.size * dtype.itemsize <= SMALL_BYTES:
                target[:rows, offset : offset + length].copy_(torch.from_numpy(values.astype(dtype)))
                return
            for a, b in _parts(rows, length, dtype.itemsize):
                host = torch.empty((rows, b - a), dtype=target.dtype, pin_memory=self._runtime.pinned)
                host.numpy()[...] = values[:, a:b]
                target[:rows, offset + a : offset + b].copy_(host, non_blocking=True)

    def _fetch(self, part: torch.Tensor) -> Floats:
        """Host memory of its own: pinned, unless the part is small."""
        pinned = self._runtime.pinned and part.nbytes > SMALL_BYTES
        host = torch.empty(part.shape, dtype=part.dtype, pin_memory=pinned).copy_(part, non_blocking=pinned)
        self._runtime.wait()
        values: Floats = host.numpy()
        return values

    def _chunk_sums(
        self, gradients: CudaArray, first_row: int, ranges: Sequence[Range], start: int
    ) -> npt.NDArray[np.float64]:
        rows = gradients.shape[0] - first_row
        cuts = chunks_of(ranges)
        items = len(cuts) * rows
        if not items:
            return np.zeros((len(cuts), rows))
        edges = self._upload(np.array([edge - start for cut in cuts for edge in cut]))
        sums = self._scratch(items, torch.float64)
        kernel = _square_sums_kernel(self._runtime.threads)
        self._runtime.launch(kernel, items, gradients.view, first_row, rows, items, edges.view, sums.view)
        found: npt.NDArray[np.float64] = sums.tensor[0, :items].cpu().numpy()
        return found.reshape(len(cuts), rows)


def _parts(rows: int, length: int, item_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of columns that fit the staging memory."""
    step = max(1, STAGING_BYTES // max(1, rows * item_bytes))
    return ((a, min(a + step, length)) for a in range(0, length, step))


def _pack(segments: Sequence[Segment]) -> tuple[list[int], Floats]:
    """All scalars in one vector, so that they travel at once, and where those of each segment begin."""
    firsts, parts, length = [], [], 0
    for segment in segments:
        firsts.append(length)
        parts += [segment.constants, segment.varying.ravel()]
        length += segment.constants.size + segment.varying.size
    return firsts, np.concatenate(parts)


@functools.cache
def _kernel(kernel: Kernel, dtype: np.dtype[Any], in_place: bool) -> Any:
    source = cuda_kernel_source(kernel, dtype, SIMULATED, in_place)
    return jit.load(_versioned(source), "cuda_kernel").kernel


@functools.cache
def _square_sums_kernel(lanes: int) -> Any:
    return jit.load(_versioned(square_sums_source(lanes, SIMULATED)), "cuda_square_sums").square_sums


def _versioned(source: str) -> str:
    return f"# numba-cuda {NUMBA_CUDA_VERSION}\n{source}"
