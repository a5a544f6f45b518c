"""A store in a directory: a database, snapshot files, the marks of what has been acknowledged, and a lock file."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from gradwire.server.failpoints import failpoint
from gradwire.server.metrics.histogram import Histogram
from gradwire.server.store import journal
from gradwire.server.store.base import (
    Acknowledged,
    Entry,
    JournalBroken,
    Position,
    Snapshot,
    SnapshotInfo,
    Store,
    StoredRun,
    StoreError,
    Written,
)
from gradwire.server.store.chain import barrier_link, first_link, next_link, verify
from gradwire.server.store.index import Head, Index, StoredSnapshot
from gradwire.server.store.lock import lock_directory
from gradwire.server.store.marks import Marks
from gradwire.server.store.presence import Presence
from gradwire.server.store.schema import open_database
from gradwire.server.store.snapshots import SUFFIX, read_file, sync_directory, sync_file, write_file
from gradwire.server.store.writer import Transaction, Writer, refusing
from gradwire.wire.errors import RunNotFound

log = logging.getLogger(__name__)

_PAGE_ROWS = 256
_PAGE_BYTES = 16 * 2**20
_PRUNED_AT_ONCE = 64
"""Rows of the journal that one transaction deletes: others wait for it."""


class DiskStore(Store):
    """Opens or makes a store. Raises StoreError when the directory cannot be used or another server uses it.

    Args:
        keep: how many snapshots of a run are kept, besides those with a label.
    """

    durable = True

    def __init__(self, directory: Path, keep: int = 3) -> None:
        self.directory = directory
        self._keep = keep
        self._files = directory / "snapshots"
        self.scratch = str(self._files)
        self._lock = lock_directory(directory)
        try:
            try:
                self._files.mkdir(mode=0o700, exist_ok=True)
                sync_directory(directory)
                self._marks = Marks(directory / "acknowledged")
                # A server that was killed may have written what it has not flushed. Whoever is told of that from now on
                # must not lose it when the power fails.
                with contextlib.suppress(FileNotFoundError):
                    sync_file(directory / "journal.sqlite3-wal")
            except OSError as error:
                raise StoreError(f"cannot write to {directory}: {error.strerror}") from error
            database = open_database(directory / "journal.sqlite3")
            sync_directory(directory)
            try:
                self._index = Index(database, self._marks, self._files)
                presence = Presence(directory / "journal.sqlite3", self._files)
            except BaseException as error:
                database.close()
                if isinstance(error, OSError):
                    raise StoreError(f"cannot read {error.filename or directory}: {error.strerror}") from error
                if not isinstance(error, sqlite3.Error):
                    raise
                raise StoreError(
                    f"the journal {directory / 'journal.sqlite3'} is damaged: {error}. Put a copy in its place, or "
                    "move the directory away to begin anew"
                ) from error
        except BaseException:
            os.close(self._lock)
            raise
        self._writer = Writer(database, self._committed, presence.check)

    @property
    def transactions(self) -> int:
        """How many there have been since the store was opened."""
        return self._writer.transactions

    @property
    def flush_seconds(self) -> Histogram:
        return self._writer.flush_seconds

    # --- runs --------------------------------------------------------------------------------------------------------

    def runs(self) -> list[StoredRun]:
        return sorted(self._index.runs.values(), key=lambda run: run.name)

    def damaged(self) -> list[tuple[StoredRun, str]]:
        return list(self._index.damaged)

    def losses(self) -> list[str]:
        return list(self._index.losses)

    def create(self, run: StoredRun, first: Written, replaces: str = "", label: str = "") -> Future[SnapshotInfo]:
        def work(transaction: Transaction) -> SnapshotInfo:
            failpoint("create.before-insert")
            position = Position(0, first_link(run.uid, run.spec))  # megabytes, with many tensors
            self._count(transaction)
            if replaces:
                self._delete(transaction, replaces)
            number = journal.insert_run(transaction.database, run, next_snapshot=2)
            kept = self._insert_snapshot(transaction, number, 1, first, position, label)

            def after() -> None:
                self._index.numbers[run.uid] = number
                self._index.runs[run.uid] = run
                self._index.kept[run.uid] = [kept]
                self._index.next_snapshot[run.uid] = 2
                self._index.note(run.uid, Head(position, first.snapshot.step))

            transaction.after.append(after)
            return kept.info

        return self._writer.submit(work)

    def delete(self, uid: str) -> Future[None]:
        def work(transaction: Transaction) -> None:
            failpoint("delete.before-delete")
            self._count(transaction)
            self._delete(transaction, uid)

        return self._writer.submit(work)

    def _delete(self, transaction: Transaction, uid: str) -> None:
        number = self._number(transaction, uid)
        journal.delete_run(transaction.database, number)
        transaction.changes["deleted", uid] = True
        # Now rather than later: a mark without a run would be taken for a loss, a run without a mark is none.
        self._marks.clear(number)

        def after() -> None:
            files = self._index.forget(uid)
            failpoint("delete.before-unlink")
            for kept in files:
                self._unlink(kept.file)

        transaction.after.append(after)

    def raise_epoch(self, uid: str, epoch: int) -> Future[None]:
        def work(transaction: Transaction) -> None:
            number = self._number(transaction, uid)
            run, next_snapshot = self._row(transaction, uid)
            if epoch <= run.epoch:
                return
            self._count(transaction)
            self._update(transaction, number, replace(run, epoch=epoch), next_snapshot)

        return self._writer.submit(work)

    def note_extra(self, uid: str, extra: str) -> Future[None]:
        def work(transaction: Transaction) -> None:
            number = self._number(transaction, uid)
            run, next_snapshot = self._row(transaction, uid)
            self._count(transaction)
            self._update(transaction, number, replace(run, extra=extra), next_snapshot)

        return self._writer.submit(work)

    # --- blocks ------------------------------------------------------------------------------------------------------

    def append(self, uid: str, entry: Entry) -> Future[Position]:
        def work(transaction: Transaction) -> Position:
            failpoint("journal.before-insert")
            number = self._number(transaction, uid)
            before = self._index.heads[uid].position
            position = Position(before.number + 1, next_link(before.chain, entry))
            journal.insert_entry(transaction.database, number, position, entry)
            transaction.after.append(lambda: self._index.note(uid, Head(position, entry.step)))
            return position

        return self._writer.submit(work, len(entry.gradients))

    def position(self, uid: str) -> Position:
        return self._index.heads[uid].position

    def entries(self, uid: str, after: Position) -> Iterator[tuple[Position, Entry]]:
        number = self._index.numbers[uid]
        position = after
        while True:
            rows, error = self._writer.submit(functools.partial(_read_page, number, position.number)).result()
            for found, entry in rows:
                verify(position, found, entry)
                position = found
                yield found, entry
            if error:
                raise JournalBroken(f"the journal cannot be read after block {position.number}: {error}")
            if not rows:
                return

    def acknowledged(self, uid: str) -> Acknowledged | None:
        return self._index.acknowledged.get(uid)

    def note_step(self, uid: str, step: int) -> None:
        self._marks.write(self._index.numbers[uid], uid, self._index.heads[uid].position.number, step)

    # --- snapshots ---------------------------------------------------------------------------------------------------

    def write(self, uid: str, snapshot: Snapshot) -> Written:
        name = f"{uid}-{snapshot.step}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        metadata = {"gradwire": snapshot.meta, "step": str(snapshot.step), "fingerprint": snapshot.fingerprint}
        with refusing():
            size_bytes, sha256 = write_file(self._files / name, snapshot.vectors, metadata)
        return Written(name, size_bytes, sha256, snapshot)

    def discard(self, written: Written) -> None:
        self._unlink(written.name)

    def record(self, uid: str, written: Written, *, barrier: bool = False, label: str = "") -> Future[SnapshotInfo]:
        snapshot = written.snapshot

        def work(transaction: Transaction) -> SnapshotInfo:
            failpoint("snapshot.before-record")
            number = self._number(transaction, uid)
            self._count(transaction)
            position = snapshot.position
            if barrier:
                before = self._index.heads[uid].position
                position = Position(before.number + 1, barrier_link(before.chain, written.sha256))
            run, snapshot_id = self._row(transaction, uid)
            kept = self._insert_snapshot(transaction, number, snapshot_id, written, position, label)
            self._update(transaction, number, run, snapshot_id + 1)
            files = sorted(
                [*transaction.changes.get(("kept", uid), self._index.kept[uid]), kept], key=lambda kept: kept.age
            )
            surplus = [old for old in files if not old.info.label][: -self._keep]
            for old in surplus:
                journal.delete_snapshot(transaction.database, old.row)
            remaining = [old for old in files if old not in surplus]

            transaction.changes["kept", uid] = remaining

            def after() -> None:
                self._index.kept[uid] = remaining
                if barrier:
                    self._index.note(uid, Head(position, snapshot.step))
                failpoint("snapshot.after-record")
                for old in surplus:
                    self._unlink(old.file)
                self._prune(uid, remaining[-2].info.number if len(remaining) > 1 else position.number)

            transaction.after.append(after)
            return kept.info

        return self._writer.submit(work)

    def snapshots(self, uid: str) -> list[SnapshotInfo]:
        return [kept.info for kept in reversed(self._index.kept[uid])]

    def load(self, uid: str, snapshot_id: int) -> Snapshot:
        kept = next((kept for kept in self._index.kept[uid] if kept.info.id == snapshot_id), None)
        if kept is None:
            raise KeyError(snapshot_id)
        metadata, vectors = read_file(self._files / kept.file, kept.info.sha256)
        position = Position(kept.info.number, kept.chain)
        return Snapshot(kept.info.step, position, metadata["fingerprint"], metadata["gradwire"], vectors)

    def cut(self, uid: str, snapshot_id: int, position: Position, step: int) -> None:
        ids = [kept.info.id for kept in self._index.kept[uid]]
        newer = self._index.kept[uid][ids.index(snapshot_id) + 1 :]

        def work(transaction: Transaction) -> None:
            number = self._number(transaction, uid)
            if newer or journal.last_number(transaction.database, number) > position.number:
                self._count(transaction)
                journal.delete_entries(transaction.database, number, position.number + 1, journal.MAX_NUMBER)
                for kept in newer:
                    journal.delete_snapshot(transaction.database, kept.row)

            def after() -> None:
                self._index.kept[uid] = [kept for kept in self._index.kept[uid] if kept not in newer]
                self._index.note(uid, Head(position, step))
                for kept in newer:
                    path = self._files / kept.file
                    if path.exists():
                        path.rename(path.with_suffix(".damaged"))

            transaction.after.append(after)

        self._writer.submit(work).result()

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _number(self, transaction: Transaction, uid: str) -> int:
        """Raises RunNotFound: it may have been deleted since the job was submitted."""
        if uid not in self._index.numbers or ("deleted", uid) in transaction.changes:
            raise RunNotFound("the run has been deleted")
        return self._index.numbers[uid]

    def _row(self, transaction: Transaction, uid: str) -> tuple[StoredRun, int]:
        """The run and the id of its next snapshot, as earlier jobs of the transaction have left them."""
        before = self._index.runs[uid], self._index.next_snapshot[uid]
        row: tuple[StoredRun, int] = transaction.changes.get(("run", uid), before)
        return row

    def _update(self, transaction: Transaction, number: int, run: StoredRun, next_snapshot: int) -> None:
        journal.update_run(transaction.database, number, run, next_snapshot)
        transaction.changes["run", run.uid] = run, next_snapshot

        def after() -> None:
            self._index.runs[run.uid] = run
            self._index.next_snapshot[run.uid] = next_snapshot

        transaction.after.append(after)

    def _insert_snapshot(
        self, transaction: Transaction, number: int, snapshot_id: int, written: Written, position: Position, label: str
    ) -> StoredSnapshot:
        step, place = written.snapshot.step, position.number
        info = SnapshotInfo(snapshot_id, step, place, time.time(), written.size_bytes, written.sha256, label)
        row = journal.insert_snapshot(transaction.database, number, written.name, info, position.chain)
        return StoredSnapshot(row, info, written.name, position.chain)

    def _prune(self, uid: str, last: int) -> None:
        """Deletes the journal up to block ``last``, a few rows at a time: others wait for each transaction."""

        def work(transaction: Transaction) -> int:
            failpoint("journal.before-prune")
            number = self._number(transaction, uid)
            first = journal.next_number(transaction.database, number, 0)
            if first is None or first > last:
                return 0
            self._count(transaction)
            return journal.delete_entries(transaction.database, number, first, min(last, first + _PRUNED_AT_ONCE - 1))

        def again(done: Future[int]) -> None:
            if done.exception() is None and done.result():
                self._prune(uid, last)

        self._writer.submit(work).add_done_callback(again)

    def _count(self, transaction: Transaction) -> None:
        """Counts the transaction; called by all who change something but the journal: each run counts its blocks."""
        if "commits" not in transaction.changes:
            transaction.changes["commits"] = self._index.commits + 1
            transaction.database.execute("UPDATE commits SET count = ?", (self._index.commits + 1,))

    def _committed(self, transaction: Transaction) -> None:
        if "commits" in transaction.changes:
            self._index.note_commits(transaction.changes["commits"])

    def _unlink(self, file: str) -> None:
        try:
            (self._files / file).unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove %s: %s", file, error)

    def close(self) -> None:
        if self._writer.closed:
            return
        self._writer.close()
        self._marks.close()
        os.close(self._lock)


def _read_page(number: int, after: int, transaction: Transaction) -> tuple[list[tuple[Position, Entry]], str]:
    """Some rows of a run's journal after block ``after``, and the error, if any, that came after them."""
    rows: list[tuple[Position, Entry]] = []
    size_bytes = 0
    try:
        while len(rows) < _PAGE_ROWS and size_bytes < _PAGE_BYTES:
            row = journal.next_entry(transaction.database, number, after)
            if row is None:
                break
            rows.append(row)
            after = row[0].number
            size_bytes += len(row[1].gradients)
    except sqlite3.Error as error:
        return rows, str(error)
    return rows, ""
