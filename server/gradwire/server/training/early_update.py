"""Blocks that are computed while they arrive: slice by slice into a second state, which takes the place of the run's.

Each element is computed once, the answer to a slice can leave while the next one arrives, and what is left to do at
commit is to put one state in the place of another. The price is room for that second state, one for each stream.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import Bools, DeviceArray, State, Write
from gradwire.server.devices.chunks import NORM_CHUNK, in_order, range_of, whole_chunks
from gradwire.server.engine.block import Returns
from gradwire.server.engine.run import Run
from gradwire.server.engine.staged_block import StagedBlock, clip_segments
from gradwire.server.memory.budget import NO_ROOM, Reservation
from gradwire.server.training.gradient_array import GradientArray
from gradwire.wire.layout import Range

Array = npt.NDArray[Any]


class SpareState:
    """Room for one stream's second state. It outlives its block: the state that a commit has replaced is the next one.

    It is a luxury, so it never takes the last quarter of the server's memory.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._memory: Reservation | None = None
        self.state: State | None = None

    def get(self) -> State | None:
        """A state that holds anything; None: there is no room for one."""
        if self.state is None:
            run, spec = self._run, self._run.spec
            size_bytes = spec.state_bytes
            if run.budget.free_bytes - size_bytes < run.budget.limit_bytes // 4:
                return None
            try:
                self._memory = run.budget.reserve(size_bytes, f"the next state of {spec.name}")
            except NO_ROOM:  # somebody else was faster
                return None
            try:
                self.state = run.device.allocate_state(spec.slots, spec.layout.elements, spec.dtype)
            except (MemoryError, RuntimeError):  # torch's own word for it is a RuntimeError
                self.release()
        return self.state

    def release(self) -> None:
        """Frees the room."""
        self.state = None
        if self._memory is not None:
            self._memory.release()
            self._memory = None


class EarlyUpdate:
    """One block on its way into ``target``.

    Args:
        spare: its state, ``target``, receives the new values.
        edges: where gradients wait whose NORM_CHUNK has not arrived whole.
    """

    def __init__(self, spare: SpareState, target: State, run: Run, block: StagedBlock, edges: GradientArray) -> None:
        self._spare = spare
        self._target = target
        self._run = run
        self._block = block
        self._edges = edges
        self.rows = block.header.steps if block.header.returns is Returns.TRAJECTORY else 1
        """Of an answer."""
        self._first_row = block.first_summed_row
        chunks = -(-run.spec.layout.elements // NORM_CHUNK)
        self._sums = np.zeros((chunks, block.header.steps - self._first_row))
        self._waiting: set[int] = set()
        self._non_finite: dict[int, tuple[int, float]] = {}

    @property
    def answers(self) -> bool:
        """Whether slices are answered as they arrive."""
        return self._block.header.returns is not Returns.NONE

    @classmethod
    def into(cls, spare: SpareState, run: Run, block: StagedBlock, edges: GradientArray) -> EarlyUpdate | None:
        """None where the server has no room."""
        target = spare.get()
        return None if target is None else cls(spare, target, run, block, edges)

    def take(self, values: Array, place: Range) -> None:
        """Computes the elements ``place`` from their gradients ``[steps, n]``, which are not needed afterwards."""
        device, block = self._run.device, self._block
        gradients = device.stage(values, self._run.spec.dtype)
        self._add_sums(gradients, place)
        device.update(
            block.state,
            gradients,
            clip_segments(block.segments, place),
            target=self._target,
            start=place.start,
            out=block.trajectory,
            write=Write.NOTHING if block.trajectory is None else Write.TRAJECTORY,
        )

    def answer(self, part: Range) -> Array:
        """The new parameters of ``part``, ``[rows, n]``; to be used before the next block begins."""
        source = self._target.params if self._block.trajectory is None else self._block.trajectory
        return self._run.device.peek(source, Range(0, self.rows), part)

    def sums(self) -> npt.NDArray[np.float64]:
        """As `Device.square_sums` from the block's first summed row on, once all gradients have arrived."""
        elements = self._run.spec.layout.elements
        for chunk in self._waiting:
            part = range_of(chunk, chunk + 1, elements)
            self._sums[chunk] = self._run.device.chunk_sums(self._kept, self._first_row, [part])[0]
        self._waiting.clear()
        return in_order(self._sums)

    def first_non_finite(self, row: int) -> tuple[int, float] | None:
        """The first element of a row that is no finite number, and what it is instead."""
        return self._non_finite.get(row)

    def apply(self, state: State, applied: Bools | None, sums: npt.NDArray[np.float64]) -> State:
        """As `Gradients.apply`. Nothing is left to be computed."""
        assert applied is None, "a block that may leave out rows is not computed early"
        self._spare.state = state
        return self._target

    def _add_sums(self, gradients: DeviceArray, place: Range) -> None:
        device, elements = self._run.device, self._run.spec.layout.elements
        first, stop = whole_chunks(place, elements)
        edges = [place]
        if first < stop:
            whole = range_of(first, stop, elements)
            sums = device.chunk_sums(gradients, self._first_row, [whole], place.start)
            self._sums[first:stop] = sums
            self._waiting.difference_update(range(first, stop))
            if self._block.checks_finite and not np.isfinite(sums).all():
                self._note_non_finite(gradients, place)
            edges = [Range(place.start, whole.start), Range(whole.stop, place.stop)]
        for edge in edges:
            if edge.start < edge.stop:
                self._waiting.update(range(edge.start // NORM_CHUNK, -(-edge.stop // NORM_CHUNK)))
                self._keep(gradients, edge, place)

    def _keep(self, gradients: DeviceArray, edge: Range, place: Range) -> None:
        """Puts ``edge`` of what has arrived for ``place`` where it can wait for the rest of its chunk."""
        columns = Range(edge.start - place.start, edge.stop - place.start)
        self._run.device.write(self._kept, edge.start, self._run.device.peek(gradients, self._all_rows, columns))
        if self._block.checks_finite:
            self._note_non_finite(gradients, place)

    @property
    def _kept(self) -> DeviceArray:
        return self._edges.of(self._block.header.steps)

    @property
    def _all_rows(self) -> Range:
        return Range(0, self._block.header.steps)

    def _note_non_finite(self, gradients: DeviceArray, place: Range) -> None:
        values = self._run.device.peek(gradients, self._all_rows, Range(0, place.stop - place.start))
        bad = ~np.isfinite(values)
        for row in np.flatnonzero(bad.any(axis=1)).tolist():
            column = int(bad[row].argmax())
            found = (place.start + column, float(values[row, column]))
            self._non_finite[row] = min(self._non_finite.get(row, found), found, key=lambda at: at[0])
