"""The CUDA device: torch owns the memory and the streams, numba.cuda compiles the kernels."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server import jit
from gradwire.server.devices.base import Bools, Device, DeviceArray, Segment, State, Write, chunks_of
from gradwire.server.devices.cuda_driver import cuda_kernel_source, square_sums_source
from gradwire.server.devices.cuda_runtime import NUMBA_CUDA_VERSION, SIMULATED, open_runtime, torch
from gradwire.server.optimizers.base import Floats, Kernel
from gradwire.wire.layout import Range

STAGING_BYTES = 16 * 2**20
"""Copies between host and device pass through pinned memory in parts of this size; torch keeps and reuses it."""

_TORCH_DTYPES: dict[np.dtype[Any], torch.dtype] = {
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}
_NUMPY_DTYPES: dict[Any, np.dtype[Any]] = {ours: theirs for theirs, ours in _TORCH_DTYPES.items()}


class CudaDevice(Device):
    """Args: index: which of the GPUs that this process sees.

    Raises RuntimeError when there is no such GPU, or when torch or numba-cuda cannot use it.
    """

    def __init__(self, index: int = 0) -> None:
        self._runtime = open_runtime(index)
        self.name = f"cuda:{index}"

    def allocate(self, rows: int, length: int, dtype: np.dtype[Any]) -> DeviceArray:
        with self._runtime.section():
            return torch.zeros((rows, length), dtype=_TORCH_DTYPES[dtype], device=self._runtime.device)

    def write(self, target: DeviceArray, offset: int, values: npt.NDArray[Any]) -> None:
        rows, length = values.shape
        with self._runtime.section():
            for a, b in _parts(rows, length, target.dtype):
                host = self._staging(rows, b - a, target.dtype)
                with np.errstate(over="ignore"):  # float64 values too large for a float32 run become infinities
                    host.numpy()[...] = values[:, a:b]
                target[:rows, offset + a : offset + b].copy_(host, non_blocking=True)

    def read(self, source: DeviceArray, rows: Range, columns: Range) -> Floats:
        height, length = rows.stop - rows.start, columns.stop - columns.start
        result: Floats = np.empty((height, length), _NUMPY_DTYPES[source.dtype])
        with self._runtime.section() as stream:
            for a, b in _parts(height, length, source.dtype):
                host = self._staging(height, b - a, source.dtype)
                part = source[rows.start : rows.stop, columns.start + a : columns.start + b]
                host.copy_(part, non_blocking=True)
                stream.synchronize()
                result[:, a:b] = host.numpy()
        return result

    def copy(self, source: DeviceArray, into: DeviceArray | None = None) -> DeviceArray:
        with self._runtime.section():
            return source.clone() if into is None else into.copy_(source)

    def chunk_sums(
        self, gradients: DeviceArray, first_row: int, ranges: Sequence[Range], start: int = 0
    ) -> npt.NDArray[np.float64]:
        rows = gradients.shape[0] - first_row
        cuts = chunks_of(ranges)
        if not cuts or not rows:
            return np.zeros((len(cuts), rows))
        with self._runtime.section():
            starts = self._upload(np.array([cut.start - start for cut in cuts]))
            stops = self._upload(np.array([cut.stop - start for cut in cuts]))
            sums = torch.empty((len(cuts), rows), dtype=torch.float64, device=self._runtime.device)
            kernel = _square_sums_kernel(self._runtime.threads)
            self._runtime.launch(kernel, len(cuts) * rows, gradients, first_row, starts, stops, sums)
            found: npt.NDArray[np.float64] = sums.cpu().numpy()
        return found

    def clip(
        self,
        gradients: DeviceArray,
        ranges: Sequence[Range],
        *,
        max_value: float | None = None,
        factors: Floats | None = None,
    ) -> None:
        with self._runtime.section():
            scale = None if factors is None or (factors == 1).all() else self._upload(factors)[:, None]
            for start, stop in ranges:
                part = gradients[:, start:stop]
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
            mask = self._upload(np.ones(1, np.bool_) if applied is None else applied)
            # Not written without `write`, but of the type that is compiled; never the state itself, which the simulator
            # would then copy back twice.
            written = torch.empty((1, 1), dtype=gradients.dtype, device=self._runtime.device) if out is None else out
            for segment, first in zip(segments, firsts, strict=True):
                used = segment.kernel.used_slots
                vectors = [state.params[0], *[state.slots[name][0] for name in used]]
                if target is not None:
                    vectors += [target.params[0], *[target.slots[name][0] for name in used]]
                where = (int(write), out_start, start, segment.start, segment.stop)
                kernel = _kernel(segment.kernel, scalars.dtype, target is None)
                blocks = -(-(segment.stop - segment.start) // self._runtime.threads)
                masked = applied is not None
                self._runtime.launch(
                    kernel, blocks, *vectors, gradients, uploaded, first, mask, masked, written, *where
                )

    def _staging(self, rows: int, length: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty((rows, length), dtype=dtype, pin_memory=self._runtime.pinned)

    def _upload(self, values: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._runtime.device)


def _parts(rows: int, length: int, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """Ranges of columns that fit the staging memory."""
    step = max(1, STAGING_BYTES // max(1, rows * dtype.itemsize))
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
