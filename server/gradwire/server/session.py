"""One worker's stream: numbered blocks in, slices of parameters and receipts out."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import numpy as np

from gradwire.server.block import BlockHeader, GradientSlice, Receipt, Reply, Returns
from gradwire.server.coverage import Coverage
from gradwire.server.devices.base import DeviceArray
from gradwire.server.exclusive import BULK_ELEMENTS, in_thread
from gradwire.server.memory import Reservation
from gradwire.server.run import Run
from gradwire.server.staging import StagedBlock, override_groups, scalar_bytes, segments_of
from gradwire.server.workers import Holder, check_id
from gradwire.wire.encoding import MAX_ROW_BYTES, SLICE_BYTES, decode
from gradwire.wire.errors import GradwireError, ProtocolViolation, ResultTooLarge, SequenceMismatch
from gradwire.wire.layout import Range


class Session:
    """Staging, previews, commits and repeats for one hold on one run.

    Args:
        gradient_wire: dtype in which gradients arrive.
        parameter_wire: dtype in which replies will be encoded; only its size matters here.
        max_result_bytes: largest trajectory that is remembered, and therefore computed.
    """

    def __init__(
        self,
        run: Run,
        holder: Holder,
        gradient_wire: np.dtype[Any],
        parameter_wire: np.dtype[Any],
        max_result_bytes: int,
        executor: Executor,
    ) -> None:
        self.run = run
        self.holder = holder
        self._gradient_wire = gradient_wire
        self._parameter_wire = parameter_wire
        self._max_result_bytes = max_result_bytes
        self._executor = executor
        self.answering = False
        """Whether a block has been committed whose answer is still on its way."""
        self._block: StagedBlock | None = None
        # The gradient array outlives its block: the next one is mostly of the same size.
        self._gradients: DeviceArray | None = None
        self._gradient_rows = 0
        self._gradient_memory: Reservation | None = None

    @classmethod
    async def attach(
        cls,
        run: Run,
        worker_id: str,
        takeover: bool,
        on_end: Callable[[GradwireError], None],
        **options: Any,
    ) -> Session:
        """Takes the run for a worker, after any commit that is under way. Raises RunBusy, RunNotFound."""
        check_id("worker_id", worker_id)
        holder = await run.exclusive.run(lambda: run.attach(worker_id, takeover, on_end))
        return cls(run, holder, **options)

    async def receive(self, part: GradientSlice) -> AsyncIterator[Reply]:
        """Takes one message and yields what can be answered now; the reply with the receipt comes last.

        Raises what the error table says. The session is of no further use then, and the run is as it was, unless the
        exception's ``applied`` says otherwise.
        """
        record = self.holder.record
        if self._block is None and part.sequence == record.last_sequence and record.receipt is not None:
            if part.last:
                self.answering = True
                async for reply in self._results(record.receipt):
                    yield reply
                self.answering = False
            return
        block = await self._block_of(part)
        values = decode(part.data, self._gradient_wire, block.header.steps)
        place = Range(part.offset, part.offset + values.shape[1])
        block.coverage.add(place)
        # The last slice needs no preview: its answer is read from what has been committed.
        preview = block.previews and not part.last and values.size > 0

        def stage() -> np.ndarray[Any, Any] | None:
            self.run.device.write(block.gradients, place.start, values)
            return self.run.preview(block, place) if preview else None

        work = values.size * (2 if preview else 1)
        if work < BULK_ELEMENTS:
            previewed = stage()
        else:
            previewed = await in_thread(self._executor, stage)
        if previewed is not None:
            for tile in self._tiles(place, previewed.shape[0]):
                columns = slice(tile.start - place.start, tile.stop - place.start)
                yield Reply(part.sequence, tile.start, previewed[:, columns])
        if part.last:
            block.coverage.require_complete(f"block {part.sequence}")
            work = self.run.spec.layout.elements * block.header.steps
            receipt = await self.run.exclusive.run(lambda: self.run.commit(self.holder, block), work=work)
            self.answering = True
            self._block = None
            block.drop()
            async for reply in self._results(receipt, place if block.previews else None):
                yield reply
            self.answering = False

    async def close(self) -> None:
        """Gives the run back and frees what was staged, once a commit that is under way has ended."""
        await self.run.exclusive.run(lambda: self.run.detach(self.holder))
        if self._block is not None:
            self._block.drop()
            self._block = None
        self._gradients = None
        if self._gradient_memory is not None:
            self._gradient_memory.release()
            self._gradient_memory = None

    async def _block_of(self, part: GradientSlice) -> StagedBlock:
        """The staged block that ``part`` belongs to; begins it with its first message."""
        block = self._block
        if block is None:
            expected = self.holder.record.last_sequence + 1
            if part.sequence != expected:
                raise SequenceMismatch(
                    f"block {part.sequence} is neither the next one, {expected}, nor a repeat of the last one",
                    applied=0 < part.sequence < expected,
                    expected_sequence=expected,
                )
            if part.header is None:
                raise ProtocolViolation(f"the first message of block {part.sequence} has no header")
            header = part.header
            # The scalars of a million steps take a while, those of one step do not.
            work = header.steps * len(self.run.spec.layout.tensors)
            block = await self.run.exclusive.run(lambda: self._begin(part.sequence, header), work=work)
        elif part.sequence != block.sequence:
            raise ProtocolViolation(
                f"a message of block {part.sequence} came before block {block.sequence} was whole; "
                "send one block at a time"
            )
        elif part.header is not None:
            raise ProtocolViolation(f"a second header for block {part.sequence}; only its first message carries one")
        return block

    def _begin(self, sequence: int, header: BlockHeader) -> StagedBlock:
        run, spec = self.run, self.run.spec
        run.require_holder(self.holder)
        widest = max(spec.dtype.itemsize, self._gradient_wire.itemsize, self._parameter_wire.itemsize)
        most = MAX_ROW_BYTES // widest
        if not 1 <= header.steps <= most:
            raise ProtocolViolation(
                f"a block of {header.steps} steps; expected 1 to {most} at {widest} bytes an element", max_steps=most
            )
        tensors = len(spec.layout.tensors)
        for index in header.absent_tensors:
            if index >= tensors:
                raise ProtocolViolation(f"absent tensor {index} is not there; this run has tensors 0 to {tensors - 1}")
        groups = override_groups(run.groups, header.overrides)
        block_bytes = spec.vector_bytes * header.steps
        if header.returns is Returns.TRAJECTORY and block_bytes > self._max_result_bytes:
            raise ResultTooLarge(
                f"the trajectory of {header.steps} steps has {block_bytes} bytes; this server remembers at most "
                f"{self._max_result_bytes}. Send smaller blocks or ask for the last parameters only",
                max_bytes=self._max_result_bytes,
            )
        self._reserve_gradients(header.steps, block_bytes)
        ranges = spec.layout.present_ranges(header.absent_tensors)
        present: Any = slice(None)
        if header.absent_tensors:
            present = np.array([i for i in range(tensors) if i not in header.absent_tensors], np.intp)
        trajectory, result_memory = None, None
        # The scalars of a few steps are too small to count, those of a million steps outweigh a small gradient.
        scalars = scalar_bytes(spec, run.tensor_steps, header) if header.steps * tensors >= BULK_ELEMENTS else 0
        scalar_memory = run.budget.reserve(scalars, f"the scalars of {header.steps} steps of {spec.name}")
        try:
            if header.returns is Returns.TRAJECTORY:
                result_memory = run.budget.reserve(block_bytes, f"a trajectory of {spec.name}")
                trajectory = run.device.allocate(header.steps, spec.layout.elements, spec.dtype)
            # Kept here and not by the caller, who may have been cancelled meanwhile.
            self._block = StagedBlock(
                sequence=sequence,
                header=header,
                version=run.version,
                state=run.state,
                groups=groups,
                ranges=ranges,
                present=present,
                segments=segments_of(spec, run.step, run.tensor_steps, header, groups),
                coverage=Coverage(spec.layout, ranges),
                gradients=self._gradients,
                scalar_memory=scalar_memory,
                trajectory=trajectory,
                result_memory=result_memory,
                previews=header.returns is not Returns.NONE and spec.previews,
            )
        except BaseException:
            scalar_memory.release()
            if result_memory is not None:
                result_memory.release()
            raise
        return self._block

    def _reserve_gradients(self, steps: int, block_bytes: int) -> None:
        if self._gradients is not None and self._gradient_rows == steps:
            return
        if self._gradient_memory is not None:
            self._gradients = None
            self._gradient_memory.release()
        spec = self.run.spec
        self._gradient_memory = self.run.budget.reserve(block_bytes, f"a block of {steps} gradients of {spec.name}")
        self._gradients = self.run.device.allocate(steps, spec.layout.elements, spec.dtype)
        self._gradient_rows = steps

    async def _results(self, receipt: Receipt, only: Range | None = None) -> AsyncIterator[Reply]:
        """The committed result of the last block: all present elements, or those in ``only``; then the receipt."""
        record = self.holder.record
        sequence = record.last_sequence
        ranges = record.ranges if only is None else (only,)
        rows = record.rows
        tiles = [tile for part in ranges for tile in self._tiles(part, rows)] if rows else []
        for index, tile in enumerate(tiles):
            try:
                values = await self.run.exclusive.run(functools.partial(self._read_result, rows, tile))
            except GradwireError as error:
                error.applied = True  # the block was committed; only its answer is lost
                raise
            last = index == len(tiles) - 1
            yield Reply(sequence, tile.start, values, receipt if last else None)
        if not tiles:
            yield Reply(sequence, receipt=receipt)

    def _read_result(self, rows: int, tile: Range) -> np.ndarray[Any, Any]:
        self.run.require_holder(self.holder)
        trajectory = self.holder.record.trajectory
        source = self.run.state.params if trajectory is None else trajectory
        return self.run.device.read(source, Range(0, rows), tile)

    def _tiles(self, part: Range, rows: int) -> Iterator[Range]:
        """Cuts ``part`` so that ``rows`` rows of each piece make a message of about SLICE_BYTES."""
        length = max(1, SLICE_BYTES // (rows * self._parameter_wire.itemsize))
        for start in range(part.start, part.stop, length):
            yield Range(start, min(start + length, part.stop))
