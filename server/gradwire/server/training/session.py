"""One worker's stream: numbered blocks in, slices of parameters and receipts out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from gradwire.server.durability import changes
from gradwire.server.durability.journaled_block import JournaledBlock
from gradwire.server.durability.run_storage import storage_of
from gradwire.server.encodings.decoders import Decoder
from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.block import BlockHeader, GradientSlice, Receipt, Reply
from gradwire.server.engine.block_plan import check_header, check_steps, plan_block
from gradwire.server.engine.coverage import Coverage
from gradwire.server.engine.gradients import Gradients, StagedGradients, StagedSums
from gradwire.server.engine.run import Run
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.engine.threads import unless_short, updates
from gradwire.server.engine.workers import Holder, check_id
from gradwire.server.failpoints import failpoint
from gradwire.server.memory.shared_memory import SharedMemory, SharedSlice, share
from gradwire.server.training.arrival_speed import ArrivalSpeed
from gradwire.server.training.early_update import EarlyUpdate, SpareState
from gradwire.server.training.gradient_array import GradientArray
from gradwire.server.training.incoming_block import IncomingBlock
from gradwire.server.training.results import Results
from gradwire.server.training.shared_answer import SharedAnswer
from gradwire.server.training.speculative_update import SpeculativeUpdate
from gradwire.wire.errors import GradwireError, ProtocolViolation, SequenceMismatch
from gradwire.wire.layout import Range
from gradwire.wire.shared import part_bytes


class Session:
    """Staging, early updates, commits and repeats for one hold on one run.

    Args:
        decoder: reads the slices of gradients.
        encoder: cuts the replies, which whoever sends them passes through it, one after another.
        local: whether the peer's address is one of this host.
        max_result_bytes: largest trajectory that is remembered, and therefore computed.
    """

    def __init__(
        self,
        run: Run,
        holder: Holder,
        decoder: Decoder,
        encoder: Encoder,
        max_result_bytes: int,
        executor: Executor,
        local: bool = False,
    ) -> None:
        self.run = run
        self.holder = holder
        self._decoder = decoder
        self._encoder = encoder
        self._max_result_bytes = max_result_bytes
        self._executor = executor
        self.memory: SharedMemory | None = None
        """Shared with the client, or offered to it."""
        self._answering: bool | None = False
        """Whether a block has been committed whose answer is still on its way. None: it is being committed."""
        self._answered = 0
        """The sequence of that block."""
        self._results = Results(run, holder, encoder)
        self._commit: asyncio.Task[Receipt] | None = None
        self._journaled: JournaledBlock | None = None
        self._gradients = GradientArray(run)
        self._staged_sums: StagedSums | None = None
        self._spare = SpareState(run)
        self._speed = ArrivalSpeed(local)
        self._incoming: IncomingBlock | None = None
        self._block: StagedBlock | None = None
        """What is arriving will be applied so; None: nothing is, or the header that holds is still to come."""
        self._early: EarlyUpdate | None = None
        """Computes what is arriving at once; None: it is kept until it is whole."""
        self._guesses = True

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
        holder = await changes.attach(run, worker_id, takeover, on_end)
        return cls(run, holder, **options)

    def share_memory(self) -> None:
        """Makes ``memory``, for the encodings of this stream, where there is some to be had and it is worth it."""
        elements = self.run.spec.layout.elements
        sizes = [coding.vector_bytes(elements) for coding in (self._decoder, self._encoder)]
        self.memory = share(self.run.budget, *map(part_bytes, sizes))

    async def receive(self, part: GradientSlice) -> AsyncIterator[Reply]:
        """Takes one message and yields what can be answered now; the reply with the receipt comes last.

        Raises what the error table says. The session is of no further use then, and the run is as it was, unless the
        exception's ``applied`` says otherwise.
        """
        record = self.holder.record
        if self._incoming is None and part.sequence == record.last_sequence and record.receipt is not None:
            if part.last:
                self._answering, self._answered = True, part.sequence
                self._encoder.restart()
                async for reply in self._results.committed(replace(record.receipt, repeated=True)):
                    yield reply
                self._answering = False
            return
        first = self._incoming is None
        incoming = await self._intake_of(part)
        data = part.data
        place = self._decoder.place(part.offset, len(data), incoming.steps)
        incoming.coverage.add(place)
        incoming.received_bytes += len(data)
        if not incoming.deferred:  # those of a deferred block leave when they are known
            self._speed.note(len(data), first=first, last=part.last)
        work = updates(place.stop - place.start, incoming.steps)
        failpoint("stage.before")
        block, early, device = self._block, self._early, self.run.device

        def values() -> np.ndarray[Any, Any]:
            """As nobody can change them any more: what is checked must be what is applied."""
            settled = data.copy() if isinstance(data, SharedSlice) else data
            return self._decoder.values(place, settled, incoming.steps)

        # One message that is a whole block waits for nothing, so it need not be kept.
        whole = first and part.last and block is not None and block.ranges == (place,) and not self.run.spec.clips
        if early is not None:
            await unless_short(self._executor, lambda: early.take(values(), place), work)
            if not part.last and early.answers:
                for tile in self._encoder.tiles(place, early.rows):
                    yield Reply(part.sequence, tile.start, early.answer(tile))
        elif not whole:
            staged, sums = self._gradients.of(incoming.steps), self._staged_sums

            def stage() -> None:  # the copy that settles shared data
                view = data.view() if isinstance(data, SharedSlice) else data
                arrived = self._decoder.values(place, view, incoming.steps)
                if sums is None:
                    device.write(staged, place.start, arrived)
                else:
                    sums.stage(device, staged, place, arrived)

            await unless_short(self._executor, stage, work)
        failpoint("stage.after")
        if part.last:
            assert block is not None
            # Elements of absent tensors may have arrived in a deferred block; they are in no range of it.
            incoming.coverage.require_complete(f"block {part.sequence}", block.ranges)
            block.received_bytes = incoming.received_bytes
            answer = None if early is not None else SharedAnswer.of(self.memory, self._encoder, block)

            def gradients() -> Gradients:
                return early or StagedGradients(
                    self.run.spec,
                    device,
                    block,
                    device.stage(values(), self.run.spec.dtype) if whole else staged,
                    place.start if whole else 0,
                    answer,
                    None if whole else self._staged_sums,
                    self._spare,
                )

            work = 0 if early is not None else updates(self.run.spec.layout.elements, incoming.steps)
            # What has arrived before this message has been answered already, where that is computed early.
            rest = None if early is None or not early.answers else [place]
            async for reply in self._commit_block(block, gradients, work, answer, rest):
                yield reply
            self._answering = False
            failpoint("reply.after")

    async def _commit_block(
        self,
        block: StagedBlock,
        gradients: Callable[[], Gradients],
        work: int,
        answer: SharedAnswer | None,
        rest: Sequence[Range] | None,
    ) -> AsyncIterator[Reply]:
        """Commits what has arrived whole, and answers it, or what of it is in ``rest``."""
        self._answering = None
        storage = storage_of(self.run)
        if storage is not None and storage.journals and self._results.fits_one_reply(block, answer, self.memory):
            # Its answer is got ready while the disk is waited for.
            self._journaled = await JournaledBlock.begin(self.run, storage, self.holder, block, gradients, work)
            state = await self._journaled.compute()
            if state is not None:
                yield self._results.ahead(block, state, self._journaled.receipt, answer, self._finish)
                return
            receipt = await self._finish()
        else:
            committing = changes.commit(self.run, self.holder, block, gradients, work)
            if answer is None or not answer.early:
                receipt = await committing
            else:
                self._commit = asyncio.ensure_future(committing)
                async for reply in answer.replies(self._commit):
                    yield reply
                receipt = await self._commit
            self._note_commit()
        if answer is not None and not answer.rest:
            yield answer.last(receipt)
            return
        async for reply in self._results.committed(receipt, rest if answer is None else answer.rest):
            yield reply

    async def _finish(self) -> Receipt:
        assert self._journaled is not None
        receipt = await self._journaled.finish()
        self._note_commit()
        return receipt

    def _note_commit(self) -> None:
        """The block has been committed; what is left of it is to be answered."""
        failpoint("reply.before")
        assert self._block is not None
        self._answering, self._answered = True, self._block.sequence
        self._block.drop()
        self._incoming = self._block = self._early = self._commit = self._journaled = None

    def complete(self, error: GradwireError) -> None:
        """Says with what ends the stream whether a block was applied, and which one: a client that has its receipt
        already waits for the answer to the next one, which has not been looked at."""
        if error.applied is None:
            error.applied = self._answering
            if self._answering:
                error.metadata["sequence"] = str(self._answered)

    async def close(self) -> None:
        """Gives the run back and frees what was staged, once a commit that is under way has ended."""
        if self._journaled is not None:
            with suppress(Exception):  # nobody is left to be told
                await self._journaled.finish()
        if self._commit is not None:
            self._commit.cancel()
            await asyncio.gather(self._commit, return_exceptions=True)
        await self.run.lock.run(lambda: self.run.detach(self.holder))
        if self._block is not None:
            self._block.drop()
            self._block = None
        self._incoming = None
        self._early = None
        self._gradients.release()
        self._spare.release()
        self._encoder.release()
        if self.memory is not None:
            self.memory.close()

    async def _intake_of(self, part: GradientSlice) -> IncomingBlock:
        """What ``part`` belongs to, begun or planned as its header says. Afterwards a last part has a planned block."""
        incoming, header = self._incoming, part.header
        if incoming is not None:
            incoming.check_next(part)
            if header is None:
                return incoming
        else:
            expected = self.holder.record.last_sequence + 1
            if part.sequence != expected:
                raise SequenceMismatch(
                    f"block {part.sequence} is neither the next one, {expected}, nor a repeat of the last one",
                    applied=0 < part.sequence < expected,
                    expected_sequence=expected,
                )
            if header is None:
                raise ProtocolViolation(f"the first message of block {part.sequence} has no header")
        # A deferred block begins anew with every header but the deferred one of its last message, which plans it.
        begins = incoming is None or not (part.last and header.deferred)
        plans = part.last or not header.deferred
        # The scalars of a million steps take a while, those of one step do not.
        work = updates(len(self.run.spec.layout.tensors), header.steps) if plans else 0
        return await self.run.lock.run(lambda: self._take_header(part, header, begins, plans), work=work)

    def _take_header(self, part: GradientSlice, header: BlockHeader, begins: bool, plans: bool) -> IncomingBlock:
        run, layout = self.run, self.run.spec.layout
        run.require_holder(self.holder)
        # What is made is kept here and not by the caller, who may have been cancelled meanwhile.
        if begins:
            check_steps(run.spec, header.steps, max(self._decoder.least_row_bytes, self._encoder.least_row_bytes))
        groups = check_header(run, header, self._max_result_bytes) if plans else ()
        if plans:
            self._encoder.check(header)
        if begins:
            absent = frozenset[int]() if header.deferred else header.absent_tensors
            coverage = Coverage(layout, layout.present_ranges(absent), replace=header.deferred)
            self._incoming = IncomingBlock(part.sequence, header.steps, header.deferred, coverage)
        assert self._incoming is not None
        self._staged_sums = None
        if not plans:
            self._early = self._guess(part.sequence, header)
            return self._incoming
        self._block = block = plan_block(run, part.sequence, header, groups)
        if begins:
            near = self._speed.near or (self.memory is not None and self.memory.mapped)
            # With many rows the second state matters less than the room that the gradients would take.
            early = run.spec.early and (header.steps > 1 or not near)
            early = early and not header.deferred and not part.last and block.covers(layout)
            self._early = EarlyUpdate.into(self._spare, run, block, self._gradients) if early else None
        elif isinstance(self._early, SpeculativeUpdate) and not self._early.holds(block):
            self._early, self._guesses = None, False  # it was in vain, and may be each time
        if self._early is None and not part.last and block.covers(layout):  # one message is summed as it is
            self._staged_sums = StagedSums(layout.elements, block)
        return self._incoming

    def _guess(self, sequence: int, header: BlockHeader) -> EarlyUpdate | None:
        if not self._guesses:
            return None
        return SpeculativeUpdate.of(self._spare, self.run, sequence, header, self._gradients)
