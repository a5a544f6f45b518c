"""What a worker logs beside its blocks: counted once, and as safe as a block, before it is acknowledged.

Its number makes it so: the run remembers the last one of each worker with the values, in one record. A block's sequence
would do as well, but for a worker that comes back with an older one: it would take the values for its next block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gradwire.server.durability.changes import on_disk
from gradwire.server.durability.records import log_to_text
from gradwire.server.durability.run_storage import storage_of
from gradwire.server.engine.run import Run
from gradwire.server.engine.workers import check_id
from gradwire.server.series.scalars import Scalar, check_scalars
from gradwire.server.store.base import Entry


async def log_scalars(run: Run, worker_id: str, number: int, epoch: int, scalars: Sequence[Scalar]) -> int:
    """Takes values as of the run's last step, unless this number has counted already; returns the step.

    Raises ProtocolViolation, MemoryLimitExceeded, SequenceMismatch, Fenced, StorageFull and the like, and then nothing
    has changed.
    """
    check_id("worker_id", worker_id)
    check_scalars(scalars, 1)
    return await run.lock.run_through(partial(_log, run, worker_id, number, epoch, scalars))


async def _log(run: Run, worker_id: str, number: int, epoch: int, scalars: Sequence[Scalar]) -> int:
    if not run.check_log(worker_id, number, epoch):
        return run.step
    run.series.claim(scalars)
    storage = storage_of(run)
    if storage is not None and storage.journals:
        text = log_to_text(number, scalars)
        entry = Entry(worker_id, 0, run.step, text, b"", storage.fingerprint)
        await on_disk(storage.store.append(run.uid, entry))
        storage.journal_bytes += entry.size_bytes
    run.log(worker_id, number, scalars)
    return run.step
