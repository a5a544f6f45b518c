"""One worker's stream: numbered blocks in, slices of parameters and receipts out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import Executor
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from gradwire.server.durability import changes
from gradwire.server.encodings.decoders import Decoder
from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.block import GradientSlice, Receipt, Reply
from gradwire.server.engine.features import Feature, require_understood
from gradwire.server.engine.run import Run
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.engine.threads import unless_short
from gradwire.server.engine.workers import Holder, check_id
from gradwire.server.failpoints import failpoint
from gradwire.server.memory.shared_memory import SharedMemory, share
from gradwire.server.metrics.blocks import BlockCounters
from gradwire.server.training.block_receiver import BlockReceiver, WholeBlock
from gradwire.server.training.block_wait import BlockWait
from gradwire.server.training.results import Results
from gradwire.server.training.straight_path import StraightPath
from gradwire.wire.errors import GradwireError
from gradwire.wire.shared import part_bytes


class Admission(Protocol):
    """Counts what a stream does."""

    def require(self, steps: int, size_bytes: int) -> None:
        """Raises for a new block whose steps, or the bytes of whose gradients, are too much at once."""

    def use_steps(self, steps: int) -> None:
        """A block of so many steps is about to be committed."""


class Answering(NamedTuple):
    """What is still owed for a block that has arrived whole."""

    committed: bool | None
    """Whether it has been committed, and its answer is on its way. None: nobody can say yet."""
    sequence: int = 0
    """Of the block, once it has been committed."""


NOTHING = Answering(committed=False)
COMMITTING = Answering(committed=None)


class Session:
    """Blocks, their commits, their answers and repeats for one hold on one run.

    Args:
        decoder: reads the slices of gradients.
        encoder: cuts the replies, which whoever sends them passes through it, one after another.
        local: whether the peer's address is one of this host.
        max_result_bytes: largest trajectory that is remembered, and therefore computed.
        admission: is told of blocks that are no repeats; None: nobody counts.
        counters: of all streams; None: nobody reads them.
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
        admission: Admission | None = None,
        counters: BlockCounters | None = None,
    ) -> None:
        self.run = run
        self.holder = holder
        self._decoder = decoder
        self._encoder = encoder
        self._executor = executor
        self._receiver = BlockReceiver(run, holder, decoder, encoder, max_result_bytes, executor, local)
        self._results = Results(run, holder, encoder)
        self._straight_path = StraightPath(run, holder, decoder, encoder)
        self._answering = NOTHING
        self._admission = admission
        self._steps = 1
        self._watch = (counters or BlockCounters()).watch()
        self._wait = BlockWait(run, holder, self._watch, self._receiver)
        holder.waits = self._wait.now
        holder.block_seconds = self._watch.last_seconds

    @classmethod
    async def attach(
        cls,
        run: Run,
        worker_id: str,
        takeover: bool,
        on_end: Callable[[GradwireError], None],
        understands: Collection[Feature] = (),
        **options: Any,
    ) -> Session:
        """Takes the run for a worker, after any commit that is under way. Raises RunBusy, RunNotFound, ClientTooOld.

        Args:
            understands: what the worker can be told.
        """
        check_id("worker_id", worker_id)
        require_understood(run.spec.name, run.spec.needs, understands)
        holder = await changes.attach(run, worker_id, takeover, on_end)
        return cls(run, holder, **options)

    @property
    def memory(self) -> SharedMemory | None:
        """Shared with the client, or offered to it."""
        return self._receiver.memory

    async def share_memory(self) -> None:
        """Makes ``memory``, for the encodings of this stream, where there is some to be had and it is worth it."""
        self._receiver.memory = memory = memory_for(self.run, self._decoder, self._encoder)
        await make_ready(memory, self.run, self._executor)

    async def receive_whole(self, part: GradientSlice) -> Reply | None:
        """As `receive`, for what comes and is answered in one message; `answered` is to be called once that is sent.
        None: nothing has happened, and the message must be received. It is tried first for every message."""
        self._watch.begin()
        if self._admission is not None and self._receipt_of_repeat(part) is None:
            self._count(self._admission, part)
        block = self._straight_path.plan(part) if self._receiver.idle else None
        if block is None:
            return None
        self._begin_commit(block)
        return self._applied(block, await self._straight_path.commit(block, part))

    def receive_at_once(self, part: GradientSlice) -> Reply | None:
        """As `receive_whole`, and without any wait: what is journaled, or counted, is none of this."""
        if self._admission is not None or not self._receiver.idle or self._straight_path.waits:
            return None
        block = self._straight_path.plan(part)
        if block is None:
            return None
        self._watch.begin()
        self._begin_commit(block)
        return self._applied(block, self._straight_path.commit_at_once(block, part))

    def _begin_commit(self, block: StagedBlock) -> None:
        failpoint("stage.before")
        failpoint("stage.after")
        self._answering = COMMITTING
        self._wait.block = block

    def _applied(self, block: StagedBlock, reply: Reply) -> Reply:
        """Notes that the straight path has ended with ``reply``."""
        self._note_commit(block, 0 if reply.receipt is None else len(reply.receipt.skipped_steps))
        failpoint("reply.before")
        self._answering = Answering(True, reply.sequence)
        return reply

    def _count(self, admission: Admission, part: GradientSlice) -> None:
        if part.header is not None:
            self._steps = part.header.steps
            admission.require(self._steps, self._steps * self._decoder.vector_bytes(self.run.spec.layout.elements))
        if part.last:  # now, since nobody may be there any more when it has been committed
            admission.use_steps(self._steps)

    @property
    def waiting_sequence(self) -> int:
        """Of the block that waits from an earlier stream: nothing does, where there is one worker."""
        return 0

    @property
    def leads(self) -> bool:
        """Whether this worker may change hyperparameters."""
        return False

    async def resume(self) -> AsyncIterator[Reply]:
        """What is owed from an earlier stream: nothing."""
        for reply in list[Reply]():
            yield reply

    def leave(self, *, said: bool) -> None:
        """Nothing more comes. Where there is one worker, it makes no difference what it has said of it."""

    def answered(self) -> None:
        """The reply to a block has been sent."""
        self._answering = NOTHING
        self._wait.block = None
        self._watch.answered()
        failpoint("reply.after")

    async def receive(self, part: GradientSlice) -> AsyncIterator[Reply]:
        """Takes one message and yields what can be answered now; the reply with the receipt comes last.

        Raises what the error table says. The session is of no further use then, and the run is as it was, unless the
        exception's ``applied`` says otherwise.
        """
        receipt = self._receipt_of_repeat(part)
        if receipt is not None:
            if part.last:  # what came before it has been applied already
                self._answering = Answering(True, part.sequence)
                self._encoder.restart()
                async for reply in self._results.committed(receipt):
                    self._wait.reply_at = perf_counter()
                    yield reply
                self._answering = NOTHING
                self._wait.reply_at = 0.0
                self._watch.repeated()
            return
        self._wait.message_at = perf_counter()
        arrived = await self._receiver.take(part)
        self._wait.message_at = 0.0
        for tile, values in self._receiver.answers(part, arrived):
            self._wait.reply_at = perf_counter()
            yield Reply(part.sequence, tile.start, values)
        self._wait.reply_at = 0.0
        failpoint("stage.after")
        if part.last:
            async for reply in self._commit_block(self._receiver.whole(arrived)):
                yield reply
            self.answered()

    def _receipt_of_repeat(self, part: GradientSlice) -> Receipt | None:
        """What answers a message of a block that has been committed before; None: it is of another one."""
        record = self.holder.record
        if self._receiver.idle and part.sequence == record.last_sequence and record.receipt is not None:
            return record.receipt._replace(repeated=True)
        return None

    async def _commit_block(self, whole: WholeBlock) -> AsyncIterator[Reply]:
        """Commits what has arrived whole, and answers what of it is unanswered."""
        self._wait.block = block = whole.block
        self._answering = COMMITTING
        self._watch.whole()
        receipt = await changes.commit(self.run, self.holder, block, whole.gradients, whole.work)
        self._note_commit(block, len(receipt.skipped_steps))
        failpoint("reply.before")
        self._answering = Answering(True, block.sequence)
        self._receiver.drop()
        async for reply in self._results.committed(receipt, whole.unanswered, written=whole.written):
            self._wait.reply_at = perf_counter()
            yield reply
        self._wait.reply_at = 0.0

    def _note_commit(self, block: StagedBlock, skipped: int) -> None:
        steps = block.header.steps
        self.run.activity.applied(steps - skipped, self._watch.committed(steps, skipped, block.journal_seconds))

    def complete(self, error: GradwireError) -> None:
        """Says with what ends the stream whether a block was applied, and which one: a client that has its receipt
        already waits for the answer to the next one, which has not been looked at."""
        self._watch.refused()
        if self._answering.committed:  # whatever else was wrong: what the client asks about has been applied
            error.applied = True
            error.metadata["sequence"] = str(self._answering.sequence)
        elif error.applied is None:
            error.applied = self._answering.committed

    async def close(self) -> None:
        """Gives the run back and frees what was staged, once a commit that is under way has ended."""
        await self.run.lock.run(lambda: self.run.detach(self.holder))
        self._watch.close()
        self._receiver.release()
        self._encoder.release()
        if self.memory is not None:
            self.memory.close()


def memory_for(run: Run, decoder: Decoder, encoder: Encoder) -> SharedMemory | None:
    """Room for a vector each way, as a stream has them encoded; None: there is none to be had. It needs `make_ready`,
    once somebody has it who frees it."""
    sizes = [coding.vector_bytes(run.spec.layout.elements) for coding in (decoder, encoder)]
    return share(run.budget, *map(part_bytes, sizes))


async def make_ready(memory: SharedMemory | None, run: Run, executor: Executor) -> None:
    """Pins memory for the run's device, if there is any."""
    if memory is not None:
        await unless_short(executor, lambda: memory.pin(run.device.pin), run.spec.layout.elements)
