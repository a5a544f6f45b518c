"""A block on its way to the journal: checked, on disk, and only then applied."""

from __future__ import annotations

import time
from collections.abc import Callable

from gradwire.server.durability.records import block_to_text
from gradwire.server.durability.run_storage import RunStorage
from gradwire.server.engine.block import Receipt
from gradwire.server.engine.gradients import Gradients, StagedGradients
from gradwire.server.engine.run import Prepared, Run
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.engine.threads import outlast
from gradwire.server.engine.workers import Holder
from gradwire.server.failpoints import failpoint
from gradwire.server.store.base import Entry


async def commit_journaled(
    run: Run, storage: RunStorage, holder: Holder, block: StagedBlock, make: Callable[[], Gradients], work: int
) -> Receipt:
    """As `Run.commit`, with the gradients that ``make()`` returns. The run's lock is held from the checks to the end:
    what is on disk must be in memory too, so a caller that is cancelled once the row is on its way stays.

    Raises what `Run.commit` does, MemoryLimitExceeded, and StorageFull or StorageFailed where the row was not written.
    """

    def prepare() -> tuple[StagedGradients, Prepared, Entry]:
        gradients = make()
        assert isinstance(gradients, StagedGradients), "gradients that have been used up cannot be journaled"
        prepared = run.prepare(holder, block, gradients)
        text = block_to_text(block.header, prepared.receipt, block.round)
        step = prepared.receipt.step
        entry = Entry(holder.worker_id, block.sequence, step, text, gradients.dense(), storage.fingerprint)
        return gradients, prepared, entry

    await run.lock.acquire()
    try:
        failpoint("commit.before-journal")
        memory = run.budget.reserve(run.spec.vector_bytes * block.header.steps, f"the journal of {run.spec.name}")
        try:
            gradients, prepared, entry = await run.lock.inside(prepare, work=work)
            block.journaling_at = began = time.perf_counter()
            row = storage.store.append(run.uid, entry)
            interrupted = await outlast(row)
            block.journal_seconds = time.perf_counter() - began
            block.journaling_at = 0.0
        finally:
            memory.release()
        refusal = row.exception()
        if refusal is not None:
            raise interrupted or refusal
        storage.journal_bytes += entry.size_bytes

        def apply() -> Receipt:
            failpoint("commit.before-apply")
            return run.apply(holder, block, gradients, prepared)

        try:
            receipt = await run.lock.inside(apply, work=work)
        finally:
            failpoint("commit.after-apply")
            if storage.due(run.step):
                storage.wake()
        if interrupted is not None:
            raise interrupted
        return receipt
    finally:
        run.lock.release()
