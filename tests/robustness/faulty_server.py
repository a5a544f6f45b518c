"""Seeded bugs, to prove that the harness finds what it is for. Tests alone plant them, in the process of a server."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from gradwire.server.durability import changes
from gradwire.server.durability.journaled_block import commit_journaled
from gradwire.server.engine.block import Receipt
from gradwire.server.engine.run import Run
from gradwire.server.engine.workers import Holder
from gradwire.server.store import disk, journal, schema, snapshots
from gradwire.server.store.base import Snapshot, Written
from tests.robustness.shared.bugs import SHARED_BUGS


def acknowledge_before_fsync() -> None:
    """Transactions are committed, and blocks acknowledged, before anything is flushed."""
    vars(schema)["_PRAGMAS"] = tuple(
        pragma.replace("synchronous=FULL", "synchronous=OFF") for pragma in schema._PRAGMAS
    )


def no_deduplication() -> None:
    """The mark of a block holds only once its sender goes on: whoever comes back is taken at the block before."""
    attach = changes.attach

    async def forgetful(run: Run, *arguments: Any) -> Holder:
        holder = await attach(run, *arguments)
        if holder.record.receipt is not None:
            holder.record.last_sequence -= 1
            holder.record.receipt = None
        return holder

    vars(changes)["attach"] = forgetful


def record_snapshot_before_fsync() -> None:
    """A snapshot is renamed and recorded at once, and flushed a second later."""

    def later(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.fsync(descriptor)
            return
        copy = os.dup(descriptor)

        def flush() -> None:
            os.fsync(copy)
            os.close(copy)

        timer = threading.Timer(1.0, flush)
        timer.daemon = True
        timer.start()

    vars(snapshots)["os"] = SimpleNamespace(**{**vars(os), "fsync": later})


def no_hash_chain() -> None:
    """Rows of the journal are taken as they are found."""
    vars(disk)["verify"] = lambda *rows: None


def drop_journal_before_snapshot() -> None:
    """The journal up to a snapshot is deleted when the snapshot is about to be written."""
    write = disk.DiskStore.write

    def early(self: disk.DiskStore, uid: str, snapshot: Snapshot) -> Written:
        number = self._index.numbers.get(uid)
        if number is not None:
            last = snapshot.position.number
            self._writer.submit(lambda t: journal.delete_entries(t.database, number, 0, last)).result()
        return write(self, uid, snapshot)

    disk.DiskStore.write = early  # type: ignore[method-assign]


def free_lock_on_cancel() -> None:
    """A run's lock is given up with the call that holds it, while the work goes on."""

    async def hasty(run: Run, *arguments: Any) -> Receipt:
        work = asyncio.ensure_future(commit_journaled(run, *arguments))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if not work.done():
                run.lock.release()
                vars(run.lock)["release"] = lambda: vars(run.lock).pop("release")
            raise

    vars(changes)["commit_journaled"] = hasty


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__.replace("_", "-"): bug
    for bug in (
        acknowledge_before_fsync,
        no_deduplication,
        record_snapshot_before_fsync,
        no_hash_chain,
        drop_journal_before_snapshot,
        free_lock_on_cancel,
    )
}


def plant(name: str) -> None:
    """Changes the server in this process. Raises KeyError for a bug that there is not."""
    {**BUGS, **SHARED_BUGS}[name]()
