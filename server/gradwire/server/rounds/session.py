"""One worker's stream at a shared run: contributions in; answers out, each when its round has closed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import Executor
from time import perf_counter
from typing import Any

from gradwire.server.encodings.decoders import Decoder
from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.activity import (
    Wait,
    WaitsFor,
    wait_for_block,
    wait_for_gradients,
    wait_for_reader,
)
from gradwire.server.engine.block import GradientSlice, Kind, Receipt, Reply, Waiting
from gradwire.server.engine.features import Feature, require_understood
from gradwire.server.engine.run import Run
from gradwire.server.engine.threads import unless_short, updates
from gradwire.server.engine.workers import Holder, check_id
from gradwire.server.failpoints import failpoint
from gradwire.server.memory.shared_memory import SharedMemory
from gradwire.server.metrics.blocks import LAST_BLOCKS
from gradwire.server.metrics.counters import Counters
from gradwire.server.rounds.generations import Generation
from gradwire.server.rounds.leases import AttachShared
from gradwire.server.rounds.rounds import Rounds, rounds_of
from gradwire.server.rounds.staged import StagedContribution
from gradwire.server.rounds.upload import Upload
from gradwire.server.training.session import Admission, make_ready, memory_for
from gradwire.wire.encoding import Array
from gradwire.wire.errors import Fenced, GradwireError, SequenceMismatch
from gradwire.wire.layout import Range

TELL_SECONDS = 5.0
"""A worker that waits is told so often why."""

Listen = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""Awaits what a function returns, unless the stream has to end meanwhile: then it raises why."""


class SharedSession:
    """As `training.session.Session`, whose methods it has.

    Args:
        waiting: what the worker has sent on an earlier stream, and is answered on this one.
        listen: under which it waits for rounds.
        counters: of the server.
        tells: whether the client can be told why it waits.
    """

    def __init__(
        self,
        rounds: Rounds,
        holder: Holder,
        waiting: StagedContribution | None,
        decoder: Decoder,
        encoder: Encoder,
        executor: Executor,
        listen: Listen,
        admission: Admission | None,
        counters: Counters,
        *,
        tells: bool,
    ) -> None:
        self.run = rounds.run
        self.rounds = rounds
        self.holder = holder
        self.memory: SharedMemory | None = None
        self._decoder = decoder
        self._encoder = encoder
        self._executor = executor
        self._listen = listen
        self._admission = admission
        self._tells = tells
        self._upload = Upload(rounds, holder, decoder, encoder, executor)
        self._waiting = waiting
        self._answering: Receipt | None = None
        self._pinned: Generation | None = None
        self._watch = counters.blocks.watch()  # it is a stream; what it waits for is no block
        rounds.counters = counters.contributions
        self._left = False
        self._last_seconds: deque[float] = deque(maxlen=LAST_BLOCKS)
        self._began_at = self._whole_at = perf_counter()
        self._sending_at = 0.0
        holder.waits = self._wait
        holder.block_seconds = lambda: self._last_seconds

    @classmethod
    async def attach(
        cls,
        run: Run,
        attach: AttachShared,
        on_end: Callable[[GradwireError], None],
        understands: Collection[Feature],
        *,
        decoder: Decoder,
        encoder: Encoder,
        executor: Executor,
        listen: Listen,
        admission: Admission | None,
        counters: Counters,
    ) -> SharedSession:
        """A place among the run's workers. Raises RunBusy, LeaderBusy, RunNotFound, ClientTooOld."""
        check_id("worker_id", attach.worker_id)
        if attach.session:
            check_id("session", attach.session)
        require_understood(run.spec.name, run.spec.needs, understands)
        rounds = rounds_of(run)
        if rounds.is_closing(attach.worker_id):
            await listen(rounds.settled)
        holder, waiting = await rounds.attach(attach, on_end)
        tells = Feature.REASONED_WAIT in understands
        return cls(rounds, holder, waiting, decoder, encoder, executor, listen, admission, counters, tells=tells)

    @property
    def waiting_sequence(self) -> int:
        """Of the contribution that waits from an earlier stream; 0: none does."""
        return 0 if self._waiting is None else self._waiting.sequence

    @property
    def leads(self) -> bool:
        """Whether this worker does."""
        return self.rounds.leases.leader == self.holder.worker_id

    async def share_memory(self) -> None:
        """As `Session.share_memory`."""
        self.memory = memory_for(self.run, self._decoder, self._encoder)
        self._upload.memory = self.memory
        await make_ready(self.memory, self.run, self._executor)

    async def resume(self) -> AsyncIterator[Reply | Waiting]:
        """The answer to what has been sent on an earlier stream, if there is something."""
        if self._waiting is not None:
            if self._encoder.dense is None:
                self._encoder.check(self._waiting.header)
            async for reply in self._answer(self._waiting):
                yield reply

    async def receive_whole(self, part: GradientSlice) -> Reply | None:
        """There is no straight path."""
        return None

    def receive_at_once(self, part: GradientSlice) -> Reply | None:
        """Nor this one."""
        return None

    async def receive(self, part: GradientSlice) -> AsyncIterator[Reply | Waiting]:
        """Takes one message; after the last one of a contribution yields why it waits, and in the end its answer.

        Raises what the error table says. The session is of no further use then; the exception's ``applied`` says
        whether the contribution is.
        """
        self.rounds.leases.heard(self.holder.worker_id)
        repeated = self._repeated(part)
        if repeated is not None:
            if part.last:
                self._encoder.restart()
                async for answer in self._parameters(part.sequence, repeated):
                    yield answer
            return
        self._count(part)
        if self._upload.idle:
            self._began_at = perf_counter()
        contribution = await self._upload.take(part)
        if contribution is None:
            return
        self._waiting, self._whole_at = contribution, perf_counter()
        try:
            async for waiting in self._settled():
                yield waiting
            await self.rounds.offer(contribution)
        except BaseException:
            self._waiting = None
            self.rounds.release(contribution)
            raise
        async for reply in self._answer(contribution):
            yield reply
        self._last_seconds.append(perf_counter() - self._began_at)

    async def _settled(self) -> AsyncIterator[Waiting]:
        """Waits until no round is about to be applied; what comes meanwhile belongs to the next one."""
        began = asyncio.get_running_loop().time()
        while self.rounds.closing:
            try:
                await self._listen(lambda: self.rounds.settled(TELL_SECONDS))
            except GradwireError as error:
                error.applied = False  # it is in no round yet
                raise
            if self.rounds.closing and self._tells:
                yield Waiting(self.rounds.why_it_waits()[0], asyncio.get_running_loop().time() - began)

    def _repeated(self, part: GradientSlice) -> Receipt | None:
        record = self.holder.record
        if self._upload.idle and part.sequence == record.last_sequence and record.receipt is not None:
            return record.receipt._replace(repeated=True)
        return None

    def _count(self, part: GradientSlice) -> None:
        if self._admission is not None:
            if part.header is not None:
                self._admission.require(1, self._decoder.vector_bytes(self.run.spec.layout.elements))
            if part.last:
                self._admission.use_steps(1)

    async def _answer(self, contribution: StagedContribution) -> AsyncIterator[Reply | Waiting]:
        """Waits until a contribution has its outcome; then the parameters, and that."""
        answer = contribution.answer
        began = asyncio.get_running_loop().time()
        while not answer.done():
            try:
                await self._listen(lambda: asyncio.wait({answer}, timeout=TELL_SECONDS))
            except GradwireError as error:
                if not self._give_up(contribution, error):
                    await asyncio.wait({answer})  # its round is being applied: that is not left half told
                    break
                raise
            if not answer.done():
                reason, _ = self.rounds.why_it_waits()
                if self._tells:
                    yield Waiting(reason, asyncio.get_running_loop().time() - began)
        failpoint("reply.before")
        self._waiting = None
        if answer.cancelled():
            raise Fenced(f"contribution {contribution.sequence} was withdrawn by a newer attachment", applied=False)
        receipt = answer.result()
        async for reply in self._parameters(contribution.sequence, receipt):
            yield reply
        failpoint("reply.after")

    def _give_up(self, contribution: StagedContribution, error: GradwireError) -> bool:
        """The stream has to end while its contribution waits. False: that is about to be applied, and answered."""
        error.applied, answer = False, contribution.answer
        if answer.cancelled():  # it was withdrawn
            return True
        if answer.done():
            failure = answer.exception()
            if isinstance(failure, GradwireError):
                error.applied = failure.applied
            return failure is not None  # else there is something to be told
        if isinstance(error, Fenced) and self.run.epoch == self.holder.epoch:
            error.applied = None  # the same worker has attached anew, and takes it over
            return True
        return self.rounds.withdraw(contribution)

    def _wait(self) -> Wait:
        """What this worker waits for. Why its round has not closed `rounds.report` says, once for all of them."""
        last = self.holder.record.last_sequence
        if self._sending_at:
            return wait_for_reader(last, self._sending_at)
        if self._waiting is not None:
            return Wait(WaitsFor.ROUND, "its round", perf_counter() - self._whole_at)
        here = self._upload.here
        if here is not None:
            return wait_for_gradients(last + 1, here.received_bytes, here.expected_bytes, here.last_at)
        return wait_for_block(last + 1, self._watch.ended_at)

    async def _parameters(self, sequence: int, receipt: Receipt) -> AsyncIterator[Reply]:
        """All parameters as they are now, and the receipt, which says so."""
        self._pinned = generation = await self.rounds.pin(self.holder.worker_id)
        try:
            self._answering = receipt = receipt._replace(step=generation.step, epoch=generation.epoch)
            self.rounds.leases.sent(self.holder.worker_id, generation.step)
            whole = Range(0, self.run.spec.layout.elements)
            values = None
            if self._encoder.dense is not None and whole.stop:
                values = await generation.encoded(self._encoder.dense, self._executor)
            written = values is not None and await self._written(values)
            tiles = self._encoder.tiles(whole, 1) if whole.stop else iter(())
            tile = next(tiles, None)
            self._sending_at = perf_counter()
            if tile is None:
                yield Reply(sequence, receipt=receipt)
            while tile is not None:
                part = generation.part(tile) if values is None else values[:, tile.start : tile.stop]
                this, tile = tile, next(tiles, None)
                self._sending_at = perf_counter()
                yield Reply(sequence, this.start, part, receipt if tile is None else None, written)
            self._answering = None
        finally:
            self._sending_at = 0.0
            self._watch.ended_at = perf_counter()
            self._unpin()

    async def _written(self, values: Array) -> bool:
        """Writes all parameters to where the client has them, in a thread, so that several workers get theirs at once;
        False: they do not lie in the memory that is shared with it."""
        memory, spec = self.memory, self.run.spec
        if memory is None or values.dtype != spec.dtype or not memory.carries_all(spec.vector_bytes):
            return False

        def write() -> None:
            memory.whole_parameters(spec.layout.elements, spec.dtype)[...] = values

        await unless_short(self._executor, write, updates(spec.layout.elements, 1))
        return True

    def _unpin(self) -> None:
        pinned, self._pinned = self._pinned, None
        if pinned is not None:
            self.rounds.generations.unpin(pinned, self.holder.worker_id)

    def answered(self) -> None:
        """Nothing is to be done."""

    def leave(self, *, said: bool) -> None:
        """Nothing more comes; ``said``: the worker has said that it leaves, so it is waited for no more. A stream that
        is broken may look like one that was ended in order."""
        self._left = said

    def complete(self, error: GradwireError) -> None:
        """Says with what ends the stream whether a contribution was applied, and which one."""
        answering = self._answering
        if answering is not None and answering.contribution is not None:
            error.applied = answering.contribution.kind is Kind.ACCEPTED
            error.metadata["sequence"] = str(self.holder.record.last_sequence)
        elif error.applied is None and self._waiting is None and not isinstance(error, SequenceMismatch):
            error.applied = False

    async def close(self) -> None:
        """Gives the place back, and frees what was staged; what has arrived whole stays in its round."""
        self._watch.close()
        self._unpin()  # a generator that nobody finishes would keep it for a while
        self._upload.release()
        self.rounds.detach(self.holder, left=self._left)
        self._encoder.release()
        if self.memory is not None:
            self.memory.close()
