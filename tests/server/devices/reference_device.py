"""The interface of a device over whole numpy arrays: one formula per line, no kernels, no threads.

It takes part in the conformance suite, so that the suite is known to ask for no more than the interface says, and it is
what the other devices' results are compared with bit for bit: same scalars, same order of operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import Bools, Device, DeviceArray, Segment, State, Write
from gradwire.server.devices.chunks import chunk_edges
from gradwire.server.devices.combining import Piece, check_alike, piece_table
from gradwire.server.optimizers.base import Floats
from gradwire.wire.layout import Range
from tests.server.devices.reference_combining import in_float64
from tests.server.devices.reference_steps import step_of


class ReferenceDevice(Device):
    name = "reference"

    def allocate(self, rows: int, length: int, dtype: np.dtype[Any]) -> DeviceArray:
        return np.zeros((rows, length), dtype)

    def write(self, target: DeviceArray, offset: int, values: npt.NDArray[Any]) -> None:
        rows, length = values.shape
        with np.errstate(over="ignore"):
            target[:rows, offset : offset + length] = values.astype(target.dtype)

    def read(self, source: DeviceArray, rows: Range, columns: Range) -> Floats:
        return np.array(source[slice(*rows), slice(*columns)])

    def as_output(self, values: Floats) -> DeviceArray | None:
        return values

    def copy(self, source: DeviceArray, into: DeviceArray | None = None) -> DeviceArray:
        if into is None:
            return np.array(source)
        into[:] = source
        return into

    def chunk_sums(
        self, gradients: DeviceArray, first_row: int, ranges: Sequence[Range], start: int = 0
    ) -> npt.NDArray[np.float64]:
        chunks = [slice(*edges) for edges in chunk_edges(ranges) - start]
        sums = [np.square(gradients[first_row:, chunk].astype(np.float64)).sum(axis=1) for chunk in chunks]
        return np.array(sums).reshape(len(chunks), gradients.shape[0] - first_row)

    def clip(
        self,
        gradients: DeviceArray,
        ranges: Sequence[Range],
        *,
        max_value: float | None = None,
        factors: Floats | None = None,
    ) -> None:
        for start, stop in ranges:
            part = gradients[:, start:stop]
            if max_value is not None:
                part[part > max_value] = max_value
                part[part < -max_value] = -max_value
            if factors is not None:
                with np.errstate(all="ignore"):
                    part *= factors[:, np.newaxis]

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
        for segment in segments:
            here = slice(segment.start, segment.stop)
            columns = slice(segment.start - start, segment.stop - start)
            there = slice(segment.start - out_start, segment.stop - out_start)
            used = segment.kernel.used_slots
            values = [state.params[0, here]] + [state.slots[name][0, here] for name in used]
            rows = iter(segment.varying)
            for k in range(gradients.shape[0]):
                if applied is None or applied[k]:
                    with np.errstate(all="ignore"):
                        values = step_of(segment.kernel)(values, gradients[k, columns], segment, next(rows))
                if write == Write.TRAJECTORY:
                    assert out is not None
                    out[k, there] = values[0]
            if write == Write.LAST:
                assert out is not None
                out[0, there] = values[0]
            result = state if target is None else target
            result.params[0, here] = values[0]
            for name, value in zip(used, values[1:], strict=True):
                result.slots[name][0, here] = value

    def combine(self, out: DeviceArray, sources: Sequence[DeviceArray], pieces: Sequence[Piece]) -> None:
        check_alike((out.shape, out.dtype), [(source.shape, source.dtype) for source in sources])
        piece_table(pieces, len(sources), out.shape[1])
        for place, terms, divisor in pieces:
            here = slice(*place)
            values = [sources[index][0, here] for index, _ in terms]
            out[0, here] = in_float64(values, [weight for _, weight in terms], divisor)
