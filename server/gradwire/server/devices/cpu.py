"""The CPU device: numpy vectors, numba kernels, and a thread pool of our own.

numba's ``parallel=True`` is not used: its default threading layer aborts the process when two threads call at once.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server import jit
from gradwire.server.devices.base import NORM_CHUNK, Bools, Device, DeviceArray, Segment, State, Write
from gradwire.server.devices.driver import SQUARE_SUMS, TILE, kernel_source
from gradwire.server.optimizers.base import Floats, Kernel
from gradwire.wire.layout import Range

PARALLEL_WORK = 262_144
"""Element updates below which handing work to another thread costs more than it saves."""

_NO_MASK: Bools = np.empty(0, np.bool_)


class CpuDevice(Device):
    """Args: threads: how many threads share a large update; default: the processors this process may use."""

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
        self.threads = threads or (len(affinity(0)) if affinity else os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="gradwire-cpu") if self.threads > 1 else None

    def allocate(self, rows: int, length: int, dtype: np.dtype[Any]) -> DeviceArray:
        return np.zeros((rows, length), dtype)

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

    def take(self, source: DeviceArray) -> Floats:
        taken: Floats = source
        return taken

    def copy(self, source: DeviceArray) -> DeviceArray:
        return source.copy()

    def square_sums(self, gradients: DeviceArray, first_row: int, ranges: Sequence[Range]) -> npt.NDArray[np.float64]:
        kernel = _square_sums_kernel()
        rows = gradients.shape[0] - first_row
        total = np.zeros(rows)
        if len(ranges) == 1 and ranges[0].stop <= NORM_CHUNK and rows * gradients.shape[1] < PARALLEL_WORK:
            kernel(gradients, first_row, ranges[0].start, ranges[0].stop, total)  # the one chunk, without ceremony
            return total
        chunks = [
            Range(max(part.start, cut), min(part.stop, cut + NORM_CHUNK))
            for part in ranges
            for cut in range(part.start - part.start % NORM_CHUNK, part.stop, NORM_CHUNK)
        ]
        sums = np.zeros((len(chunks), rows))

        def work(start: int, stop: int) -> None:
            for chunk in range(start, stop):
                kernel(gradients, first_row, chunks[chunk].start, chunks[chunk].stop, sums[chunk])

        self._split(work, 0, len(chunks), rows * gradients.shape[1], 1)
        for chunk_sums in sums:  # in order; numpy's own sum over this axis pairs them up by count
            total += chunk_sums
        return total

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
        commit: bool,
        applied: Bools | None = None,
        out: DeviceArray | None = None,
        out_start: int = 0,
        write: Write = Write.NOTHING,
    ) -> None:
        params = state.params[0]
        mask = _NO_MASK if applied is None else applied
        target = state.params if out is None else out  # not written without `write`, but of the type that is compiled
        for segment in segments:
            slots = [state.slots[name][0] for name in segment.kernel.used_slots]
            kernel = functools.partial(
                _kernel(segment.kernel),
                params,
                *slots,
                gradients,
                segment.constants,
                segment.varying,
                mask,
                target,
                int(write),
                out_start,
                commit,
            )
            work = (segment.stop - segment.start) * gradients.shape[0]
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


@functools.cache
def _kernel(kernel: Kernel) -> Any:
    return jit.cpu_module(kernel_source(kernel), "kernel")


@functools.cache
def _square_sums_kernel() -> Any:
    return jit.cpu_module(SQUARE_SUMS, "square_sums")
