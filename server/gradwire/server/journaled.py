"""A block on its way to the journal: checked, on disk, and only then done; and what is got ready meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from dataclasses import dataclass

from gradwire.server.block import Receipt
from gradwire.server.devices.base import State
from gradwire.server.exclusive import outlast
from gradwire.server.failpoints import failpoint
from gradwire.server.gradients import Gradients, StagedGradients
from gradwire.server.kept import Kept
from gradwire.server.memory import Reservation
from gradwire.server.records import block_to_text
from gradwire.server.run import Prepared, Run
from gradwire.server.staging import StagedBlock
from gradwire.server.store.base import Entry, Position
from gradwire.server.workers import Holder


@dataclass(eq=False)
class JournaledBlock:
    """Holds the run's lock from `begin` to the end of `finish`, which must be called: what is on disk must be in memory
    too, whoever has been cancelled meanwhile."""

    run: Run
    kept: Kept
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
    patience: float
    """Seconds for which the event loop may wait for the disk."""
    ended: bool = False

    @classmethod
    async def begin(
        cls, run: Run, kept: Kept, holder: Holder, block: StagedBlock, make: Callable[[], Gradients], work: int
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
            entry = Entry(holder.worker_id, block.sequence, step, text, gradients.dense(), kept.fingerprint)
            return gradients, prepared, entry

        await run.exclusive.acquire()
        try:
            failpoint("commit.before-journal")
            memory = run.budget.reserve(run.spec.vector_bytes * block.header.steps, f"the journal of {run.spec.name}")
            try:
                gradients, prepared, entry = await run.exclusive.inside(prepare, work=work)
                patience = kept.patience.ask(run)
                row = kept.store.append(run.uid, entry)
            except BaseException:
                memory.release()
                raise
        except BaseException:
            run.exclusive.release()
            raise
        return cls(run, kept, holder, block, work, gradients, prepared, row, len(entry.gradients), memory, patience)

    @property
    def receipt(self) -> Receipt:
        """What `finish` will return."""
        return self.prepared.receipt

    async def compute(self) -> State | None:
        """Computes the state after the block while the disk is waited for; None where that has to wait, too."""
        compute = functools.partial(self.gradients.compute, self.run.state, self.prepared.applied)
        await self.run.exclusive.inside(compute, work=self.work)
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
            if self.patience:
                with suppress(TimeoutError):
                    self.row.exception(self.patience)
            interrupted = await outlast(self.row)
            self.kept.patience.note_flushed()
            self.memory.release()
            refusal = self.row.exception()
            if refusal is not None:
                raise interrupted or refusal
            self.kept.journal_bytes += self.row_bytes
            try:
                work = 0 if self.gradients.computed is not None else self.work
                receipt = await self.run.exclusive.inside(self._apply, work=work)
            finally:
                failpoint("commit.after-apply")
                if self.kept.due(self.run.step):
                    self.kept.wake()
            if interrupted is not None:
                raise interrupted
            return receipt
        finally:
            self._unlock()

    def _apply(self) -> Receipt:
        failpoint("commit.before-apply")
        return self.run.apply(self.holder, self.block, self.gradients, self.prepared)

    def _unlock(self) -> None:
        self.run.exclusive.release()
