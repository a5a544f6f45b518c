"""A block on its way to the journal: checked, on disk, and only then done; and what is got ready meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from dataclasses import dataclass

from gradwire.server.devices.base import State
from gradwire.server.durability.records import block_to_text
from gradwire.server.durability.run_storage import RunStorage
from gradwire.server.engine.block import Receipt
from gradwire.server.engine.gradients import Gradients, StagedGradients
from gradwire.server.engine.run import Prepared, Run
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.engine.threads import outlast
from gradwire.server.engine.workers import Holder
from gradwire.server.failpoints import failpoint
from gradwire.server.memory.budget import Reservation
from gradwire.server.store.base import Entry, Position


@dataclass(eq=False)
class JournaledBlock:
    """Holds the run's lock from `begin` to the end of `finish`, which must be called: what is on disk must be in memory
    too, whoever has been cancelled meanwhile."""

    run: Run
    storage: RunStorage
    holder: Holder
    block: StagedBlock
    work: int
    """Element updates; decides what leaves the event loop."""
    gradients: StagedGradients
    prepared: Prepared
    row: Future[Position]
    row_bytes: int
    memory: Reservation
    """For the row."""
    wait_seconds: float
    """Seconds for which the event loop may wait for the disk."""
    ended: bool = False

    @classmethod
    async def begin(
        cls, run: Run, storage: RunStorage, holder: Holder, block: StagedBlock, make: Callable[[], Gradients], work: int
    ) -> JournaledBlock:
        """Checks all that `Run.prepare` does, with the gradients that ``make()`` returns, and asks for the row.

        Raises what `Run.prepare` does, and MemoryLimitExceeded; then, or when it is cancelled, nothing has happened.
        """

        def prepare() -> tuple[StagedGradients, Prepared, Entry]:
            gradients = make()
            assert isinstance(gradients, StagedGradients), "gradients that have been used up cannot be journaled"
            prepared = run.prepare(holder, block, gradients)
            text = block_to_text(block.header, prepared.receipt)
            step = prepared.receipt.step
            entry = Entry(holder.worker_id, block.sequence, step, text, gradients.dense(), storage.fingerprint)
            return gradients, prepared, entry

        await run.lock.acquire()
        try:
            failpoint("commit.before-journal")
            memory = run.budget.reserve(run.spec.vector_bytes * block.header.steps, f"the journal of {run.spec.name}")
            try:
                gradients, prepared, entry = await run.lock.inside(prepare, work=work)
                wait_seconds = storage.flush_wait.ask(run)
                row = storage.store.append(run.uid, entry)
            except BaseException:
                memory.release()
                raise
        except BaseException:
            run.lock.release()
            raise
        return cls(
            run, storage, holder, block, work, gradients, prepared, row, len(entry.gradients), memory, wait_seconds
        )

    @property
    def receipt(self) -> Receipt:
        """What `finish` will return."""
        return self.prepared.receipt

    async def compute(self) -> State | None:
        """Computes the state after the block while the disk is waited for; None where that has to wait, too."""
        compute = functools.partial(self.gradients.compute, self.run.state, self.prepared.applied)
        await self.run.lock.inside(compute, work=self.work)
        return self.gradients.computed

    async def finish(self) -> Receipt:
        """Waits for the disk and does what is on it. A second call does nothing.

        Raises StorageFull, StorageFailed when the row could not be written, and InternalError as `Run.apply` does. A
        caller that is cancelled stays until all is done.
        """
        if self.ended:
            return self.receipt
        self.ended = True
        try:
            if self.wait_seconds:
                with suppress(TimeoutError):
                    self.row.exception(self.wait_seconds)
            interrupted = await outlast(self.row)
            self.storage.flush_wait.note_flushed()
            self.memory.release()
            refusal = self.row.exception()
            if refusal is not None:
                raise interrupted or refusal
            self.storage.journal_bytes += self.row_bytes
            try:
                work = 0 if self.gradients.computed is not None else self.work
                receipt = await self.run.lock.inside(self._apply, work=work)
            finally:
                failpoint("commit.after-apply")
                if self.storage.due(self.run.step):
                    self.storage.wake()
            if interrupted is not None:
                raise interrupted
            return receipt
        finally:
            self._unlock()

    def _apply(self) -> Receipt:
        failpoint("commit.before-apply")
        return self.run.apply(self.holder, self.block, self.gradients, self.prepared)

    def _unlock(self) -> None:
        self.run.lock.release()
