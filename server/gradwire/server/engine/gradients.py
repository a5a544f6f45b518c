"""What a commit needs of a block's gradients, and the plain way to it: all of them wait in one array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import (
    NORM_CHUNK,
    Bools,
    Device,
    DeviceArray,
    State,
    Write,
    in_order,
    range_of,
    whole_chunks,
)
from gradwire.server.engine.clipping import clip
from gradwire.server.engine.spec import RunSpec
from gradwire.server.engine.staged_block import StagedBlock, clip_segments
from gradwire.server.optimizers.base import Floats
from gradwire.wire.encoding import narrow_into
from gradwire.wire.layout import Range

Sums = npt.NDArray[np.float64]


class Gradients(Protocol):
    """The gradients of one block, all of which have arrived."""

    def sums(self) -> Sums:
        """As `Device.square_sums`, for each row from the block's first summed one on."""

    def first_non_finite(self, row: int) -> tuple[int, float] | None:
        """The first element of a row that is no finite number, and what it is instead; None: there is none."""

    def apply(self, state: State, applied: Bools | None, sums: Sums) -> State:
        """The state after the block, without the rows where ``applied`` is False; ``state`` is of no use afterwards."""


class Answer(Protocol):
    """Where the new parameters go, part by part, while a block is applied."""

    @property
    def parts(self) -> Sequence[Range]:
        """What goes somewhere, in order."""

    @property
    def rest(self) -> Sequence[Range]:
        """What goes nowhere. All of them together are the block's ranges."""

    def place(self, part: Range) -> Floats:
        """``[1, n]`` on the host, of any float dtype."""

    def done(self, part: Range) -> None:
        """``place(part)`` holds the new parameters."""


class Spare(Protocol):
    """Room for a second state; see `training.early_update.SpareState`."""

    state: State | None

    def get(self) -> State | None:
        """A state that holds anything; None: there is no room for one."""


class StagedSums:
    """Sums of squares of those chunks of a block that have arrived in one piece, made when they did.

    Only for blocks in which no element is absent and none comes twice.
    """

    def __init__(self, elements: int, block: StagedBlock) -> None:
        self._elements = elements
        self._first_row = block.first_summed_row
        rows = block.header.steps - self._first_row
        chunks = -(-elements // NORM_CHUNK)
        self._sums = np.zeros((chunks, rows))
        self._known = np.zeros(chunks, np.bool_)

    def stage(self, device: Device, array: DeviceArray, place: Range, values: npt.NDArray[Any]) -> None:
        """Writes ``values`` to columns ``place`` of ``array``."""
        first, stop = whole_chunks(place, self._elements)
        whole = [range_of(first, stop, self._elements)] if first < stop else []
        sums = device.write_summing(array, place.start, values, self._first_row, whole)
        if first < stop:
            self._sums[first:stop] = sums
            self._known[first:stop] = True

    def total(self, device: Device, array: DeviceArray) -> Sums:
        """As `Device.square_sums`, once all has arrived."""
        for chunk in np.flatnonzero(~self._known).tolist():
            part = range_of(chunk, chunk + 1, self._elements)
            self._sums[chunk] = device.chunk_sums(array, self._first_row, [part])[0]
        return in_order(self._sums)


class StagedGradients:
    """Gradients in one array.

    Args:
        array: ``[steps, n]``; written to where the run clips.
        start: the element to which its first column belongs.
        answer: is given the parameters after the block while it is applied.
        staged_sums: what is known of the sums.
        spare: where `compute` puts the state after the block.
    """

    def __init__(
        self,
        spec: RunSpec,
        device: Device,
        block: StagedBlock,
        array: DeviceArray,
        start: int = 0,
        answer: Answer | None = None,
        staged_sums: StagedSums | None = None,
        spare: Spare | None = None,
    ) -> None:
        self._spec = spec
        self._device = device
        self._block = block
        self._array = array
        self._start = start
        self._answer = answer
        self._staged_sums = staged_sums
        self._spare = spare
        self._target: State | None = None

    def sums(self) -> Sums:
        if self._staged_sums is not None:
            return self._staged_sums.total(self._device, self._array)
        return self._device.square_sums(self._array, self._block.first_summed_row, self._block.ranges, self._start)

    def first_non_finite(self, row: int) -> tuple[int, float] | None:
        for part in self._block.ranges:
            columns = Range(part.start - self._start, part.stop - self._start)
            values = self._device.peek(self._array, Range(row, row + 1), columns)[0]
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                return part.start + int(bad[0]), float(values[bad[0]])
        return None

    def dense(self) -> memoryview:
        """The bytes of the gradients of the present elements, ``[steps, present]``; valid until `apply`."""
        rows = Range(0, self._block.header.steps)
        parts = [
            self._device.peek(self._array, rows, Range(part.start - self._start, part.stop - self._start))
            for part in self._block.ranges
        ]
        whole = parts[0] if len(parts) == 1 else np.concatenate([np.empty((rows.stop, 0), self._spec.dtype), *parts], 1)
        return np.ascontiguousarray(whole).reshape(-1).view(np.uint8).data

    @property
    def computed(self) -> State | None:
        """What `compute` has made; None: everything is left for `apply` to do."""
        return self._target

    def compute(self, state: State, applied: Bools | None) -> None:
        """Computes the state after the block, if there is room for a second one, and changes nothing yet. Raises
        nothing: where it fails, `apply` tries again, and says so."""
        if self._spare is None or self._spec.clips or not self._block.covers(self._spec.layout):
            return
        with suppress(Exception):
            target = self._spare.get()
            if target is not None:
                self._update(state, applied, target)
                self._target = target

    def apply(self, state: State, applied: Bools | None, sums: Sums) -> State:
        if self._target is not None:
            assert self._spare is not None
            self._spare.state = state
            if self._answer is not None:
                for part in self._answer.parts:
                    self._answer.done(part)
            return self._target
        if self._spec.clips:
            clip(self._spec, self._device, self._array, self._block.ranges, sums)
        self._update(state, applied, None, self._answer.done if self._answer is not None else None)
        return state

    def _update(
        self, state: State, applied: Bools | None, target: State | None, done: Callable[[Range], None] | None = None
    ) -> None:
        """Updates ``state``, or ``target`` from it, and writes the answer where it goes. ``done``: of its parts."""
        device, block, answer = self._device, self._block, self._answer
        if answer is None:
            device.update(
                state,
                self._array,
                block.segments,
                target=target,
                start=self._start,
                applied=applied,
                out=block.trajectory,
                write=Write.NOTHING if block.trajectory is None else Write.TRAJECTORY,
            )
            return
        for part in answer.parts:
            place = answer.place(part)
            out = device.as_output(place) if place.dtype == self._spec.dtype else None
            device.update(
                state,
                self._array,
                clip_segments(block.segments, part),
                target=target,
                start=self._start,
                applied=applied,
                out=out,
                out_start=part.start,
                write=Write.NOTHING if out is None else Write.LAST,
            )
            if out is None:
                narrow_into(place, device.peek((state if target is None else target).params, Range(0, 1), part))
            if done is not None:
                done(part)
        if answer.rest:
            segments = [segment for part in answer.rest for segment in clip_segments(block.segments, part)]
            device.update(state, self._array, segments, target=target, start=self._start, applied=applied)
