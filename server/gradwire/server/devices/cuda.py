"""The CUDA device: torch owns the memory and the streams, numba.cuda compiles the kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire.server import jit
from gradwire.server.devices import cuda_driver
from gradwire.server.devices.base import Bools, DeviceArray, Segment, State, Write
from gradwire.server.devices.chunks import chunk_edges
from gradwire.server.devices.cuda_combining import (
    CombiningDevice as Device,
)  # so named, for what follows is fingerprinted
from gradwire.server.devices.cuda_driver import (
    TOGETHER,
    cuda_kernel_source,
    kernel_signature,
    square_sums_signature,
    square_sums_source,
)
from gradwire.server.devices.cuda_runtime import NUMBA_CUDA_VERSION, SIMULATED, compiled, made_once, open_runtime, torch
from gradwire.server.optimizers.base import Floats, Kernel
from gradwire.wire.layout import Range

log = logging.getLogger(__name__)

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


class Fetched(NamedTuple):
    """Elements of one row that are on the host, too."""

    row: int
    columns: Range
    values: Floats


class CudaArray:
    """Memory of torch's, ``[rows, length]``, contiguous."""

    __slots__ = ("fetched", "shape", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.fetched: Fetched | None = None
        """By `CudaDevice.peek`; None once the memory has changed."""


class HostVector:
    """Pinned memory of the host, ``[1, n]``: what `CudaDevice.as_output` makes."""

    def __init__(self, values: Floats) -> None:
        self.tensor = torch.from_numpy(values)


class CudaDevice(Device):
    """Args: index: which of the GPUs that this process sees.

    Raises RuntimeError when there is no such GPU, or when torch or numba-cuda cannot use it.
    """

    kernel_modules = (cuda_driver,)

    def __init__(self, index: int = 0) -> None:
        self._runtime = open_runtime(index)
        self._pinned: tuple[Range, ...] = ()
        self.name = f"cuda:{index}"

    def allocate(self, rows: int, length: int, dtype: np.dtype[Any]) -> DeviceArray:
        with self._runtime.section():
            return self._array(torch.zeros, rows, length, _TORCH_DTYPES[dtype])

    def write(self, target: DeviceArray, offset: int, values: npt.NDArray[Any]) -> None:
        target.fetched = None
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

    def peek(self, source: DeviceArray, rows: Range, columns: Range) -> Floats:
        """As `Device.peek`. Who asks for one part of a row after another gets the following ones fetched ahead."""
        if rows.stop - rows.start != 1:
            return self.read(source, rows, columns)
        (row, _), (start, stop) = rows, columns
        found: Fetched | None = source.fetched
        if found is None or found.row != row or not (found.columns.start <= start and stop <= found.columns.stop):
            until = stop
            if found is not None and found.row == row and found.columns.stop == start:
                until = min(max(stop, start + STAGING_BYTES // source.tensor.itemsize), source.shape[1])
            found = source.fetched = Fetched(row, Range(start, until), self.read(source, rows, Range(start, until)))
        first = start - found.columns.start
        return found.values[:, first : first + stop - start]

    def pin(self, memory: npt.NDArray[np.uint8]) -> Callable[[], None]:
        place = _place(memory)
        with self._runtime.section():
            if not self._runtime.pin(place.start, memory.nbytes):
                log.info(
                    "%s cannot pin %d bytes of the host; copies from and to them are slower", self.name, memory.nbytes
                )
                return lambda: None
        self._pinned = (*self._pinned, place)

        def unpin() -> None:
            self._pinned = tuple(other for other in self._pinned if other != place)
            with self._runtime.section():
                self._runtime.unpin(place.start)

        return unpin

    def as_output(self, values: Floats) -> DeviceArray | None:
        return HostVector(values) if self._is_pinned(values) else None

    def copy(self, source: DeviceArray, into: DeviceArray | None = None) -> DeviceArray:
        with self._runtime.section():
            if into is None:
                return CudaArray(source.tensor.clone())
            into.fetched = None
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
            gradients.fetched = None
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
        host, out = (out, None) if isinstance(out, HostVector) else (None, out)
        result = state if target is None else target
        with self._runtime.section():
            firsts, scalars = _pack(segments)
            uploaded = self._upload(scalars)
            masked = applied is not None
            mask = self._upload(applied) if applied is not None else self._scratch(1, torch.bool)
            written = uploaded if out is None else out.tensor  # of the type that is compiled, and not written
            lengths = (*gradients.shape, 0 if out is None else out.shape[1])
            to_write = 0 if out is None else int(write)
            for segment, first in zip(segments, firsts, strict=True):
                used = segment.kernel.used_slots
                arrays = [result.params, *[result.slots[name] for name in used]]
                for array in arrays:
                    array.fetched = None
                if target is not None:
                    arrays = [state.params, *[state.slots[name] for name in used], *arrays]
                tensors = [*[array.tensor for array in arrays], gradients.tensor, uploaded, mask, written]
                where = (first, masked, to_write, out_start, start, segment.start, segment.stop)
                kernel = _kernel(segment.kernel, scalars.dtype, target is None)
                blocks = -(-(segment.stop - segment.start) // (self._runtime.threads * TOGETHER))
                arguments = [*map(self._runtime.argument, tensors), *lengths, *where]
                self._runtime.launch(kernel, blocks, self._runtime.threads, *arguments)
                if host is not None and write is Write.LAST:
                    place = host.tensor[:, segment.start - out_start : segment.stop - out_start]
                    place.copy_(result.params.tensor[:, segment.start : segment.stop], non_blocking=True)
            if out is not None:
                out.fetched = None

    # What follows runs inside a section. What the host hands over is copied before a call returns, waited for or not.

    def _array(self, make: Callable[..., torch.Tensor], rows: int, length: int, dtype: torch.dtype) -> CudaArray:
        return CudaArray(make((rows, length), dtype=dtype, device=self._runtime.device))

    def _scratch(self, elements: int, dtype: torch.dtype) -> torch.Tensor:
        """``[elements]`` or more, of any values, for what ends with the section; of each type one at a time."""
        if elements > SCRATCH_ELEMENTS:
            return torch.empty(elements, dtype=dtype, device=self._runtime.device)
        buffers = self._runtime.lane.buffers
        if dtype not in buffers:
            buffers[dtype] = torch.zeros(SCRATCH_ELEMENTS, dtype=dtype, device=self._runtime.device)
        return buffers[dtype]

    def _upload(self, values: npt.NDArray[Any]) -> torch.Tensor:
        """A scratch vector that begins with ``values`` ``[n]``."""
        vector = self._scratch(values.size, _TORCH_DTYPES[values.dtype])
        vector[: values.size].copy_(torch.from_numpy(values), non_blocking=True)
        return vector

    def _write(self, target: torch.Tensor, offset: int, values: npt.NDArray[Any]) -> None:
        rows, length = values.shape
        dtype = _NUMPY_DTYPES[target.dtype]
        if values.dtype == dtype and self._is_pinned(values):
            target[:rows, offset : offset + length].copy_(torch.from_numpy(values), non_blocking=True)
            return
        with np.errstate(over="ignore"):  # float64 values too large for a float32 run become infinities
            if values.size * dtype.itemsize <= SMALL_BYTES:
                target[:rows, offset : offset + length].copy_(torch.from_numpy(values.astype(dtype)), non_blocking=True)
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
        edges = chunk_edges(ranges) - start
        items = len(edges) * rows
        if not items:
            return np.zeros((len(edges), rows))
        uploaded = self._upload(edges.reshape(-1))
        sums = self._scratch(items, torch.float64)
        kernel = _square_sums_kernel(self._runtime.sum_lanes, _NUMPY_DTYPES[gradients.tensor.dtype])
        arguments = map(self._runtime.argument, (gradients.tensor, uploaded, sums))
        lengths = (gradients.shape[1], first_row, rows, items)
        self._runtime.launch(kernel, items, self._runtime.sum_lanes, *arguments, *lengths)
        found: npt.NDArray[np.float64] = sums[:items].cpu().numpy()
        return found.reshape(len(edges), rows)

    def _is_pinned(self, values: npt.NDArray[Any]) -> bool:
        if not self._pinned or not values.flags.c_contiguous:
            return False
        start, stop = _place(values)
        return any(place.start <= start and stop <= place.stop for place in self._pinned)


def _place(values: npt.NDArray[Any]) -> Range:
    """The addresses of contiguous memory of the host."""
    address: int = values.__array_interface__["data"][0]
    return Range(address, address + values.nbytes)


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


@made_once
def _kernel(kernel: Kernel, dtype: np.dtype[Any], in_place: bool) -> Any:
    source = cuda_kernel_source(kernel, dtype, SIMULATED, in_place)
    dispatcher = jit.load(_versioned(source), "cuda_kernel").kernel
    return compiled(dispatcher, kernel_signature(kernel, dtype, in_place))


@made_once
def _square_sums_kernel(lanes: int, dtype: np.dtype[Any]) -> Any:
    dispatcher = jit.load(_versioned(square_sums_source(SIMULATED, lanes)), "cuda_square_sums").square_sums
    return compiled(dispatcher, square_sums_signature(dtype))


def _versioned(source: str) -> str:
    return f"# numba-cuda {NUMBA_CUDA_VERSION}\n{source}"
