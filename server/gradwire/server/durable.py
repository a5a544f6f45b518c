"""What changes a run, safe on disk before it is made and before anybody is told.

A change that waits for the disk holds the run's lock meanwhile, but no thread: the runs of a server wait together, and
one flush serves them all. A run that is kept nowhere waits for nothing.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from gradwire.server.block import Receipt
from gradwire.server.exclusive import in_thread, outlast
from gradwire.server.failpoints import failpoint
from gradwire.server.gradients import Gradients, StagedGradients
from gradwire.server.kept import Kept
from gradwire.server.persist import snapshot_of
from gradwire.server.records import block_to_text
from gradwire.server.run import Prepared, Run, Values
from gradwire.server.staging import StagedBlock
from gradwire.server.store.base import Entry, SnapshotInfo, Store, Written
from gradwire.server.workers import Holder
from gradwire.wire.errors import GradwireError

T = TypeVar("T")

AHEAD_ELEMENTS = 16_384
"""Element updates from which a block is computed while the disk is waited for. A shorter update is nearly all Python,
and would keep the thread that writes from the interpreter."""


async def attach(run: Run, worker_id: str, takeover: bool, on_end: Callable[[GradwireError], None]) -> Holder:
    """As `Run.attach`; a caller that is cancelled has not attached."""
    kept = run.kept
    if kept is None:
        return await run.exclusive.run(lambda: run.attach(worker_id, takeover, on_end))
    async with run.exclusive.held():
        run.check_attach(worker_id, takeover)
        await on_disk(kept.store.raise_epoch(run.uid, run.epoch + 1))
        return run.attach(worker_id, takeover, on_end)


async def commit(
    run: Run, holder: Holder, block: StagedBlock, gradients: Callable[[], Gradients], work: int
) -> Receipt:
    """As `Run.commit`, with the gradients that ``gradients()`` returns.

    Args:
        work: element updates; decides whether it leaves the event loop.
    """
    kept = run.kept
    if kept is None:
        return await run.exclusive.run(lambda: run.commit(holder, block, gradients()), work=work)
    if not kept.journals:
        return await run.exclusive.run(lambda: _noted(run, kept, run.commit(holder, block, gradients())), work=work)
    return await _journaled(run, kept, holder, block, gradients, work)


def _noted(run: Run, kept: Kept, receipt: Receipt) -> Receipt:
    kept.store.note_step(run.uid, receipt.step)
    if kept.due(run.step):
        kept.wake()
    return receipt


async def _journaled(
    run: Run, kept: Kept, holder: Holder, block: StagedBlock, make: Callable[[], Gradients], work: int
) -> Receipt:
    async with run.exclusive.held():
        return await _journal_and_apply(run, kept, holder, block, make, work)


async def _journal_and_apply(
    run: Run, kept: Kept, holder: Holder, block: StagedBlock, make: Callable[[], Gradients], work: int
) -> Receipt:
    """Everything is checked, then journaled, and only then done: what could fail in between is the machine alone.

    Once the journal has been asked, a caller that is cancelled stays: what is on disk must be in memory too.
    """

    def prepare() -> tuple[Entry, StagedGradients, Prepared]:
        gradients = make()
        assert isinstance(gradients, StagedGradients), "gradients that have been used up cannot be journaled"
        prepared = run.prepare(holder, block, gradients)
        text = block_to_text(block.header, prepared.receipt)
        step = prepared.receipt.step
        entry = Entry(holder.worker_id, block.sequence, step, text, gradients.dense(), kept.fingerprint)
        return entry, gradients, prepared

    failpoint("commit.before-journal")
    with run.budget.reserve(run.spec.vector_bytes * block.header.steps, f"the journal of {run.spec.name}"):
        entry, gradients, prepared = await run.exclusive.inside(prepare, work=work)
        journaled = kept.store.append(run.uid, entry)
        interrupted = None
        if work >= AHEAD_ELEMENTS:
            interrupted = await _compute_meanwhile(run, gradients, prepared, work)
        interrupted = await outlast(journaled) or interrupted
        refusal = journaled.exception()
        if refusal is not None:
            raise interrupted or refusal
        kept.journal_bytes += len(entry.gradients)
        del entry
    try:
        apply = functools.partial(_apply, run, holder, block, gradients, prepared)
        receipt = await run.exclusive.inside(apply, work=0 if gradients.computed else work)
    finally:
        failpoint("commit.after-apply")
        if kept.due(run.step):
            kept.wake()
    if interrupted is not None:
        raise interrupted
    return receipt


async def _compute_meanwhile(
    run: Run, gradients: StagedGradients, prepared: Prepared, work: int
) -> asyncio.CancelledError | None:
    """Uses the time that the disk takes. Returns the cancellation that came meanwhile."""
    try:
        await run.exclusive.inside(functools.partial(gradients.compute, run.state, prepared.applied), work=work)
    except asyncio.CancelledError as error:
        return error
    return None


def _apply(run: Run, holder: Holder, block: StagedBlock, gradients: Gradients, prepared: Prepared) -> Receipt:
    failpoint("commit.before-apply")
    return run.apply(holder, block, gradients, prepared)


async def put(run: Run, what: str, make: Callable[[], Values], work: int = 0) -> tuple[int, int]:
    """Puts new values in place and fences the holder; returns (step, epoch).

    Args:
        what: how the fenced holder is told.
        make: the values; called under the lock.
    """
    kept = run.kept

    def plainly() -> tuple[int, int]:
        run.require_open()
        run.replace(make(), what)
        return run.step, run.epoch

    def write(kept: Kept) -> tuple[Values, Written]:
        run.require_open()
        values = make()
        snapshot = snapshot_of(run, kept.store.position(run.uid), kept.fingerprint, values, run.epoch + 1)
        return values, kept.store.write(run.uid, snapshot)

    async def safely(kept: Kept) -> tuple[int, int]:
        values, written = await in_thread(run.exclusive.executor, functools.partial(write, kept))
        failpoint("write.before-record")
        await record(kept.store, run.uid, written, barrier=True)
        failpoint("write.before-apply")
        run.replace(values, what)
        kept.saved(run.version, run.step)
        return run.step, run.epoch

    if kept is None:
        return await run.exclusive.run(plainly, work=work)
    return await run.exclusive.run_through(functools.partial(safely, kept))


async def record(store: Store, uid: str, written: Written, *, barrier: bool = False, label: str = "") -> SnapshotInfo:
    """As `Store.record`; what was written is discarded where that has certainly not succeeded."""
    try:
        return await on_disk(store.record(uid, written, barrier=barrier, label=label))
    except GradwireError as error:
        if error.applied is False:
            store.discard(written)
        raise


async def on_disk(future: Future[T]) -> T:
    """Waits for a store without a thread."""
    return await asyncio.wrap_future(future)
