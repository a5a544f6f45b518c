"""The CPU device: numpy vectors, numba kernels, and a thread pool of our own.

numba's ``parallel=True`` is not used: its default threading layer aborts the process when two threads call at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server import jit
from gradwire.server.devices.base import Bools, Device, DeviceArray, Segment, State, Write
from gradwire.server.devices.chunks import NORM_CHUNK, chunk_edges
from gradwire.server.devices.driver import SQUARE_SUMS, TILE, kernel_source
from gradwire.server.limits import available_processors
from gradwire.server.optimizers.base import Floats, Kernel
from gradwire.wire.layout import Range

PARALLEL_WORK = 2**20
"""Element updates below which handing work to another thread costs more than it saves."""

_PAGE_BYTES = 4096
_STAGGER_BYTES = 9 * 64
"""Between the vectors of a state, modulo a page. An update walks through up to nine of them at once, and all that lie
at the same place of their pages compete for the same eight ways of the first-level cache: measured, a tenth slower."""

_NO_MASK: Bools = np.empty(0, np.bool_)


class CpuDevice(Device):
    """Args: threads: how many threads share a large update; default: the processors this process may use."""

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or available_processors()
        self._stagger = 0
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="gradwire-cpu") if self.threads > 1 else None

    def allocate(self, rows: int, length: int, dtype: np.dtype[Any]) -> DeviceArray:
        size_bytes = rows * length * dtype.itemsize
        if size_bytes < _PAGE_BYTES:
            return np.zeros((rows, length), dtype)
        self._stagger = (self._stagger + _STAGGER_BYTES) % _PAGE_BYTES  # a lost race costs no more than speed
        room = np.zeros(size_bytes + _PAGE_BYTES, np.uint8)
        start = (self._stagger - room.ctypes.data) % _PAGE_BYTES
        return room[start : start + size_bytes].view(dtype).reshape(rows, length)

    def write(self, target: DeviceArray, offset: int, values: npt.NDArray[Any]) -> None:
        place = target[: values.shape[0], offset : offset + values.shape[1]]
        if values.dtype == target.dtype:
            place[:] = values
            return
        with np.errstate(over="ignore"):  # float64 values too large for a float32 run become infinities, checked later
            place[:] = values

    def read(self, source: DeviceArray, rows: Range, columns: Range) -> Floats:
        part: Floats = source[rows.start : rows.stop, columns.start : columns.stop]
        return part.copy()

    def stage(self, values: npt.NDArray[Any], dtype: np.dtype[Any]) -> DeviceArray:
        if values.dtype == dtype and values.flags.c_contiguous and values.flags.aligned:
            return values
        with np.errstate(over="ignore"):
            return values.astype(dtype)

    def peek(self, source: DeviceArray, rows: Range, columns: Range) -> Floats:
        part: Floats = source[rows.start : rows.stop, columns.start : columns.stop]
        return part

    def as_output(self, values: Floats) -> DeviceArray | None:
        return values

    def copy(self, source: DeviceArray, into: DeviceArray | None = None) -> DeviceArray:
        if into is None:
            return source.copy()

        def work(start: int, stop: int) -> None:
            into[:, start:stop] = source[:, start:stop]

        self._split(work, 0, source.shape[1], source.size, TILE)
        return into

    def chunk_sums(
        self, gradients: DeviceArray, first_row: int, ranges: Sequence[Range], start: int = 0
    ) -> npt.NDArray[np.float64]:
        kernel, values = _square_sums_kernel(), _read_only(gradients)
        rows = gradients.shape[0] - first_row
        if len(ranges) == 1 and ranges[0].stop <= NORM_CHUNK and rows * gradients.shape[1] < PARALLEL_WORK:
            sums = np.zeros((1, rows))
            kernel(values, first_row, ranges[0].start - start, ranges[0].stop - start, sums[0])  # without ceremony
            return sums
        edges = chunk_edges(ranges).tolist()
        sums = np.zeros((len(edges), rows))

        def work(first: int, last: int) -> None:
            for index in range(first, last):
                begin, end = edges[index]
                kernel(values, first_row, begin - start, end - start, sums[index])

        self._split(work, 0, len(edges), rows * gradients.shape[1], 1)
        return sums

    def clip(
        self,
        gradients: DeviceArray,
        ranges: Sequence[Range],
        *,
        max_value: float | None = None,
        factors: Floats | None = None,
    ) -> None:
        rows = gradients.shape[0]
        # Loops of numpy's: each runs at the speed of memory, and there is nothing to compile.
        limit = None if max_value is None else gradients.dtype.type(max_value)
        scale = None if factors is None or (factors == 1).all() else factors[:, np.newaxis]
        if limit is None and scale is None:
            return

        def work(start: int, stop: int) -> None:
            part = gradients[:, start:stop]
            if limit is not None:
                np.clip(part, -limit, limit, out=part)
            if scale is not None:
                with np.errstate(invalid="ignore"):  # 0 times an infinity; each thread has an errstate of its own
                    np.multiply(part, scale, out=part)

        for part in ranges:
            self._split(work, part.start, part.stop, rows * (part.stop - part.start), TILE)

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
        result = state if target is None else target
        mask = _NO_MASK if applied is None else applied
        written = state.params if out is None else out  # not written without `write`, but of the type that is compiled
        values = _read_only(gradients)
        for segment in segments:
            used = segment.kernel.used_slots
            arguments = (
                state.params[0],
                *[state.slots[name][0] for name in used],
                result.params[0],
                *[result.slots[name][0] for name in used],
                values,
                segment.constants,
                segment.varying,
                mask,
                written,
                int(write),
                out_start,
                start,
                target is None,
            )
            work = (segment.stop - segment.start) * gradients.shape[0]
            if work < PARALLEL_WORK:
                _kernel(segment.kernel)(*arguments, segment.start, segment.stop)
            else:
                kernel = functools.partial(_kernel(segment.kernel), *arguments)
                self._split(kernel, segment.start, segment.stop, work, TILE)

    def _split(self, function: Callable[[int, int], object], start: int, stop: int, work: int, grain: int) -> None:
        """Calls ``function(a, b)`` over parts of ``start .. stop``, in several threads where the work is worth it."""
        if self._pool is None or work < PARALLEL_WORK or stop - start <= grain:
            function(start, stop)
            return
        part = -(-(stop - start) // (self.threads * grain)) * grain
        futures = [self._pool.submit(function, a, min(a + part, stop)) for a in range(start, stop, part)]
        for future in futures:
            future.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """To numba an array that may be written is of another type than one that may not, as those over messages."""
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


@functools.cache
def _kernel(kernel: Kernel) -> Any:
    return jit.cpu_module(kernel_source(kernel), "kernel")


@functools.cache
def _square_sums_kernel() -> Any:
    return jit.cpu_module(SQUARE_SUMS, "square_sums")
