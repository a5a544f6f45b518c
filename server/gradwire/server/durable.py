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
from gradwire.server.exclusive import in_thread
from gradwire.server.failpoints import failpoint
from gradwire.server.gradients import Gradients
from gradwire.server.journaled import JournaledBlock
from gradwire.server.kept import Kept
from gradwire.server.persist import snapshot_of
from gradwire.server.run import Run, Values
from gradwire.server.staging import StagedBlock
from gradwire.server.store.base import SnapshotInfo, Store, Written
from gradwire.server.workers import Holder
from gradwire.wire.errors import GradwireError

T = TypeVar("T")


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
    journaled = await JournaledBlock.begin(run, kept, holder, block, gradients, work)
    try:
        await journaled.compute()
    except BaseException:  # cancelled, as a rule; what is on its way to the disk must not be left alone
        await journaled.finish()
        raise
    return await journaled.finish()


def _noted(run: Run, kept: Kept, receipt: Receipt) -> Receipt:
    kept.store.note_step(run.uid, receipt.step)
    if kept.due(run.step):
        kept.wake()
    return receipt


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
