"""One block after another as it arrives on a stream: planned from its headers, computed at once or kept until whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from gradwire.server.encodings.decoders import Decoder
from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.block import BlockHeader, GradientSlice, Returns
from gradwire.server.engine.block_plan import check_header, check_kind, check_steps, plan_block, planning_work
from gradwire.server.engine.gradients import Gradients, StagedGradients
from gradwire.server.engine.run import Run
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.engine.threads import unless_short, updates
from gradwire.server.engine.workers import Holder
from gradwire.server.failpoints import failpoint
from gradwire.server.memory.shared_memory import SharedMemory
from gradwire.server.optimizers.base import Floats
from gradwire.server.training.arrival_speed import ArrivalSpeed
from gradwire.server.training.early_update import EarlyUpdate, SpareState
from gradwire.server.training.gradient_array import GradientArray
from gradwire.server.training.incoming_block import ArrivedSlice, Here, IncomingBlock
from gradwire.server.training.lying_gradients import LyingGradients
from gradwire.server.training.speculative_update import SpeculativeUpdate
from gradwire.wire.encoding import Array
from gradwire.wire.errors import ProtocolViolation, SequenceMismatch
from gradwire.wire.layout import Range


@dataclass(eq=False)
class WholeBlock:
    """A block all of which has arrived, ready to be committed."""

    block: StagedBlock
    gradients: Callable[[], Gradients]
    """To be called under the run's lock."""
    work: int
    """Element updates that are left for the commit."""
    written: bool
    """Whether the commit writes the new parameters to where the client has its own."""
    unanswered: Sequence[Range] | None
    """What has not been answered while it arrived; None: all of it."""


class BlockReceiver:
    """Takes the blocks of one hold on one run, slice by slice.

    Args:
        encoder: of the answers, which must be able to carry what a header asks for.
        executor: for what is no short work.
        local: whether the peer's address is one of this host.
        max_result_bytes: largest trajectory that may be asked for.
    """

    def __init__(
        self,
        run: Run,
        holder: Holder,
        decoder: Decoder,
        encoder: Encoder,
        max_result_bytes: int,
        executor: Executor,
        local: bool,
    ) -> None:
        self.memory: SharedMemory | None = None
        """Shared with the client, or offered to it."""
        self._run = run
        self._holder = holder
        self._decoder = decoder
        self._encoder = encoder
        self._max_result_bytes = max_result_bytes
        self._executor = executor
        self._speed = ArrivalSpeed(local)
        self._gradients = GradientArray(run)
        self._lying = LyingGradients(run, decoder, clips=run.spec.clips)
        self._computed: StagedGradients | None = None
        self._spare = SpareState(run)
        self._speculates = True
        self._incoming: IncomingBlock | None = None
        self._block: StagedBlock | None = None
        """What is arriving will be applied so; None: nothing is, or the header that holds is still to come."""
        self._early: EarlyUpdate | None = None
        """Computes what is arriving at once; None: it is kept until it is whole."""

    @property
    def idle(self) -> bool:
        """Whether no block is arriving."""
        return self._incoming is None

    @property
    def here(self) -> Here | None:
        """How much of a block is; None: none is arriving."""
        return None if self._incoming is None else self._incoming.here(self._decoder)

    # --- slices ------------------------------------------------------------------------------------------------------

    async def take(self, part: GradientSlice) -> ArrivedSlice:
        """Checks a slice against its block, and computes or keeps it. Raises what the error table says."""
        first = self._incoming is None
        incoming = await self._incoming_of(part)
        place = incoming.add(part, self._decoder)
        if not incoming.deferred:  # those of a deferred block leave when they are known
            self._speed.note(len(part.data), first=first, last=part.last)
        block, early = self._block, self._early
        if first:
            self._lying.begin(possible=block is not None and self._may_lie(block))
        alone = first and part.last and block is not None and block.ranges == (place,) and not self._run.spec.clips
        arrived = ArrivedSlice(self._decoder, place, part.data, incoming.steps, alone)
        work = updates(place.stop - place.start, incoming.steps)
        if early is not None and block is not None:
            work += block.piece_work
        failpoint("stage.before")
        if early is not None:
            await unless_short(self._executor, lambda: early.take(arrived.settled(), place), work)
        elif self._lying.take(arrived):
            memory = self.memory
            if memory is not None and not part.last:  # those that are left are summed where the block is committed
                await unless_short(self._executor, lambda: self._lying.sums.add(memory), work)
        else:
            for one in [*self._lying.give_up(), *([] if alone else [arrived])]:
                await self._copy(one)
        return arrived

    def _may_lie(self, block: StagedBlock) -> bool:
        """Whether the gradients of a block may be computed where the client has written them."""
        run = self._run
        journals = run.storage is not None and run.storage.journals
        return block.header.steps == 1 and not block.header.deferred and block.covers(run.spec.layout) and not journals

    async def _copy(self, arrived: ArrivedSlice) -> None:
        """To where it waits until its block is whole."""
        array, device, place = self._gradients.of(arrived.steps), self._run.device, arrived.place
        work = updates(place.stop - place.start, arrived.steps)
        await unless_short(self._executor, lambda: device.write(array, place.start, arrived.to_be_copied()), work)

    def answers(self, part: GradientSlice, arrived: ArrivedSlice) -> Iterator[tuple[Range, Array]]:
        """The new parameters that ``arrived`` has led to already. The last slice of a block is answered when that has
        been committed."""
        early = self._early
        if early is not None and early.answers and not part.last:
            for tile in self._encoder.tiles(arrived.place, early.rows):
                yield tile, early.answer(tile)

    def whole(self, last: ArrivedSlice) -> WholeBlock:
        """The block that ``last`` has ended. Raises IncompleteValues."""
        incoming, block, early = self._incoming, self._block, self._early
        assert incoming is not None
        assert block is not None
        # Elements of absent tensors may have arrived in a deferred block; they are in no range of it.
        incoming.coverage.require_complete(f"block {block.sequence}", block.ranges)
        block.received_bytes = incoming.received_bytes
        if early is not None:
            # What has arrived before the last message has been answered already.
            unanswered = [last.place] if early.answers else None
            return WholeBlock(block, lambda: early, work=0, written=False, unanswered=unanswered)
        run = self._run
        memory = self.memory if self._lying.whole else None
        kept = None if memory is not None or last.alone else self._gradients.of(incoming.steps)
        out = self._in_place(block)

        def gradients() -> Gradients:
            start, array, chunk_sums = 0, kept, None
            if memory is not None:
                values = memory.gradient_values(Range(0, run.spec.layout.elements), run.spec.dtype)
                array = run.device.stage(values, run.spec.dtype)
                chunk_sums = self._lying.sums.whole(memory)
            elif last.alone:
                start, array = last.place.start, run.device.stage(last.settled(), run.spec.dtype)
            self._computed = StagedGradients(run.spec, run.device, block, array, start, out, chunk_sums=chunk_sums)
            return self._computed

        work = updates(run.spec.layout.elements, incoming.steps) + block.piece_work
        return WholeBlock(block, gradients, work, written=out is not None, unanswered=None)

    def _in_place(self, block: StagedBlock) -> Callable[[], Floats] | None:
        """Where the new parameters go while they are computed; None: they are copied afterwards, if at all."""
        memory, run = self.memory, self._run
        if memory is None or not memory.carries_all(run.spec.vector_bytes):
            return None
        if block.header.returns is not Returns.LAST or self._encoder.dense != run.spec.dtype:
            return None
        return functools.partial(memory.whole_parameters, run.spec.layout.elements, run.spec.dtype)

    # --- headers -----------------------------------------------------------------------------------------------------

    async def _incoming_of(self, part: GradientSlice) -> IncomingBlock:
        """What ``part`` belongs to, begun or planned as its header says. Afterwards a last part has a planned block."""
        incoming, header = self._incoming, part.header
        if incoming is not None:
            incoming.check_next(part)
            if header is None:
                return incoming
        else:
            expected = self._holder.record.last_sequence + 1
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
        # The scalars of a million steps take a while, and so do many absent tensors; those of one step do not.
        work = planning_work(self._run, header) if plans else 0
        return await self._run.lock.run(lambda: self._take_header(part, header, begins, plans), work=work)

    def _take_header(self, part: GradientSlice, header: BlockHeader, begins: bool, plans: bool) -> IncomingBlock:
        """Called under the run's lock. What is made is kept here and not by the caller, who may have been cancelled
        meanwhile."""
        run = self._run
        run.require_holder(self._holder)
        check_kind(run, header)
        if begins:
            check_steps(run.spec, header.steps, max(self._decoder.least_row_bytes, self._encoder.least_row_bytes))
        groups = check_header(run, header, self._max_result_bytes) if plans else ()
        if plans:
            self._encoder.check(header)
        if begins:
            self._incoming = IncomingBlock.begun(part.sequence, header, run.spec.layout)
        assert self._incoming is not None
        if not plans:
            self._early = self._speculation(part.sequence, header)
            return self._incoming
        self._block = block = plan_block(run, part.sequence, header, groups)
        if begins:
            self._early = self._early_update(part, header, block)
        elif isinstance(self._early, SpeculativeUpdate) and not self._early.holds(block):
            self._early, self._speculates = None, False  # it was in vain, and may be each time
        return self._incoming

    def _early_update(self, part: GradientSlice, header: BlockHeader, block: StagedBlock) -> EarlyUpdate | None:
        """What computes a block while it arrives; None where nothing is gained by that, or it cannot be."""
        spec = self._run.spec
        if not spec.early or header.deferred or part.last or not block.covers(spec.layout):
            return None
        near = self._speed.near or (self.memory is not None and self.memory.mapped)
        # With many rows the second state matters less than the room that the gradients would take.
        if near and header.steps == 1:
            return None
        return EarlyUpdate.into(self._spare, self._run, block, self._gradients)

    def _speculation(self, sequence: int, header: BlockHeader) -> EarlyUpdate | None:
        if not self._speculates:
            return None
        return SpeculativeUpdate.of(self._spare, self._run, sequence, header, self._gradients)

    # --- the end -----------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Forgets the block that has arrived, or was about to; the next one may begin."""
        if self._block is not None:
            self._block.drop()
        self._incoming = self._block = self._early = None
        self._lying.give_up()
        if self._computed is not None:
            self._computed.let_go()  # an error's traceback may keep them, and a view would keep the memory
            self._computed = None

    def release(self) -> None:
        """Frees all that is set aside for this stream."""
        self.drop()
        self._gradients.release()
        self._spare.release()
