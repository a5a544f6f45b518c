"""What changes a run, safe on disk before it is made and before anybody is told.

A change that waits for the disk holds the run's lock meanwhile, but no thread: the runs of a server wait together, and
one flush serves them all. A run that is stored nowhere waits for nothing.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from gradwire.server.durability.journaled_block import commit_journaled
from gradwire.server.durability.run_snapshot import snapshot_of
from gradwire.server.durability.run_storage import RunStorage, storage_of
from gradwire.server.engine.block import Receipt
from gradwire.server.engine.gradients import Gradients
from gradwire.server.engine.run import Run, Values
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.engine.threads import in_thread
from gradwire.server.engine.workers import Holder
from gradwire.server.failpoints import failpoint
from gradwire.server.store.base import SnapshotInfo, Store, Written
from gradwire.wire.errors import GradwireError

T = TypeVar("T")


async def attach(run: Run, worker_id: str, takeover: bool, on_end: Callable[[GradwireError], None]) -> Holder:
    """As `Run.attach`; a caller that is cancelled has not attached."""
    storage = storage_of(run)
    if storage is None:
        return await run.lock.run(lambda: run.attach(worker_id, takeover, on_end))
    async with run.lock.held():
        run.check_attach(worker_id, takeover)
        await on_disk(storage.store.raise_epoch(run.uid, run.epoch + 1))
        return run.attach(worker_id, takeover, on_end)


async def commit(
    run: Run, holder: Holder, block: StagedBlock, gradients: Callable[[], Gradients], work: int
) -> Receipt:
    """As `Run.commit`, with the gradients that ``gradients()`` returns.

    Args:
        work: element updates; decides whether it leaves the event loop.
    """
    storage = storage_of(run)
    if storage is None:
        return await run.lock.run(lambda: run.commit(holder, block, gradients()), work=work)
    if not storage.journals:
        return await run.lock.run(lambda: _noted(run, storage, run.commit(holder, block, gradients())), work=work)
    return await commit_journaled(run, storage, holder, block, gradients, work)


def waits(run: Run) -> bool:
    """Whether commits of this run wait for the disk."""
    storage = storage_of(run)
    return storage is not None and storage.journals


def commit_at_once(run: Run, holder: Holder, block: StagedBlock, gradients: Gradients) -> Receipt:
    """As `commit`, of a block that is short, while nobody holds the lock of a run that does not wait for the disk."""
    storage = storage_of(run)
    receipt = run.commit(holder, block, gradients)
    return receipt if storage is None else _noted(run, storage, receipt)


def _noted(run: Run, storage: RunStorage, receipt: Receipt) -> Receipt:
    storage.store.note_step(run.uid, receipt.step)
    if storage.due(run.step):
        storage.wake()
    return receipt


async def put(run: Run, what: str, make: Callable[[], Values], work: int = 0) -> tuple[int, int]:
    """Puts new values in place and fences the holder; returns (step, epoch).

    Args:
        what: how the fenced holder is told.
        make: the values; called under the lock.
    """
    storage = storage_of(run)

    def plainly() -> tuple[int, int]:
        run.require_open()
        run.replace(make(), what)
        return run.step, run.epoch

    def write(storage: RunStorage) -> tuple[Values, Written]:
        run.require_open()
        values = make()
        snapshot = snapshot_of(run, storage.store.position(run.uid), storage.fingerprint, values, run.epoch + 1)
        return values, storage.store.write(run.uid, snapshot)

    async def safely(storage: RunStorage) -> tuple[int, int]:
        values, written = await in_thread(run.lock.executor, functools.partial(write, storage))
        failpoint("write.before-record")
        await record(storage.store, run.uid, written, barrier=True)
        failpoint("write.before-apply")
        run.replace(values, what)
        storage.saved(run.changes, run.step)
        return run.step, run.epoch

    if storage is None:
        return await run.lock.run(plainly, work=work)
    return await run.lock.run_through(functools.partial(safely, storage))


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
