"""What a commit needs of a block's gradients, and the plain way to it: all of them wait in one array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import Bools, Device, DeviceArray, State, Write
from gradwire.server.devices.chunks import in_order
from gradwire.server.engine.clipping import clip
from gradwire.server.engine.spec import RunSpec
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.optimizers.base import Floats
from gradwire.wire.layout import Layout, Range, shape_text

Sums = npt.NDArray[np.float64]


class Gradients(Protocol):
    """The gradients of one block, all of which have arrived."""

    def sums(self) -> Sums:
        """As `Device.square_sums`, for each row from the block's first summed one on."""

    def first_non_finite(self, row: int) -> tuple[int, float] | None:
        """The first element of a row that is no finite number, and what it is instead; None: there is none."""

    def apply(self, state: State, applied: Bools | None, sums: Sums) -> State:
        """The state after the block, without the rows where ``applied`` is False; ``state`` is of no use afterwards."""


class StagedGradients:
    """Gradients in one array.

    Args:
        array: ``[steps, n]``; written to where the run clips.
        start: the element to which its first column belongs.
        out: where the parameters after the block go too, ``[1, elements]`` in the run's dtype; asked for when it is
            written. None: nowhere.
        fresh: a vector that becomes the run's parameters, for the old ones are still read; None: those are written to.
        chunk_sums: of ``array``, if they are known.
    """

    def __init__(
        self,
        spec: RunSpec,
        device: Device,
        block: StagedBlock,
        array: DeviceArray,
        start: int = 0,
        out: Callable[[], Floats] | None = None,
        fresh: DeviceArray | None = None,
        chunk_sums: Sums | None = None,
    ) -> None:
        self._spec = spec
        self._device = device
        self._block = block
        self._array = array
        self._start = start
        self._out = out
        self._fresh = fresh
        self._chunk_sums = chunk_sums

    def sums(self) -> Sums:
        if self._chunk_sums is not None:
            return in_order(self._chunk_sums)
        return self._device.square_sums(self._array, self._block.first_summed_row, self._block.ranges, self._start)

    def first_non_finite(self, row: int) -> tuple[int, float] | None:
        return first_non_finite(self._device, self._array, self._block.ranges, row, self._start)

    def dense(self) -> memoryview:
        """The bytes of the gradients of the present elements, ``[steps, present]``; valid until `apply`."""
        rows = Range(0, self._block.header.steps)
        parts = [
            self._device.peek(self._array, rows, Range(part.start - self._start, part.stop - self._start))
            for part in self._block.ranges
        ]
        whole = parts[0] if len(parts) == 1 else np.concatenate([np.empty((rows.stop, 0), self._spec.dtype), *parts], 1)
        return np.ascontiguousarray(whole).reshape(-1).view(np.uint8).data

    def let_go(self) -> None:
        """Of the array. The object is of no further use."""
        self._array = self._out = self._fresh = None

    def apply(self, state: State, applied: Bools | None, sums: Sums) -> State:
        block = self._block
        if self._spec.clips_steps:
            clip(self._spec, self._device, self._array, block.ranges, sums)
        device, out, write = self._device, block.trajectory, Write.TRAJECTORY
        if self._out is not None:
            out, write = device.as_output(self._out()), Write.LAST
        if self._fresh is not None:  # one pass more; an update from one vector into another would not vectorize
            state = State(device.copy(state.params, self._fresh), state.slots)
        device.update(
            state,
            self._array,
            block.segments,
            start=self._start,
            applied=applied,
            out=out,
            write=Write.NOTHING if out is None else write,
        )
        return state


def first_non_finite(
    device: Device, array: DeviceArray, ranges: Sequence[Range], row: int = 0, start: int = 0
) -> tuple[int, float] | None:
    """The first element in ``ranges`` that is no finite number, and what it is instead; None: there is none.

    Args:
        array: ``[steps, n]``.
        start: the element to which its first column belongs.
    """
    for part in ranges:
        columns = Range(part.start - start, part.stop - start)
        values = device.peek(array, Range(row, row + 1), columns)[0]
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            return part.start + int(bad[0]), float(values[bad[0]])
    return None


def non_finite_text(layout: Layout, element: int, value: float) -> str:
    """What `first_non_finite` has found, in words, as the beginning of a sentence."""
    tensor = layout.tensor_at(element)
    return f"the gradient of tensor {shape_text(tensor)} is {value} at its element {element - tensor.start}"
