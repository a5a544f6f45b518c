"""A store in a directory: a database, snapshot files, the marks of what has been acknowledged, and a lock file."""

from __future__ import annotations

import errno
import fcntl
import functools
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

from gradwire.server.failpoints import failpoint
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
from gradwire.server.store.marks import COMMITS, Marks
from gradwire.server.store.snapshots import SUFFIX, UNFINISHED, read_file, sync_directory, write_file
from gradwire.server.store.writer import Transaction, Writer, refusal
from gradwire.wire.errors import RunNotFound

log = logging.getLogger(__name__)

_PAGE_ROWS = 256
_PAGE_BYTES = 16 * 2**20
_PRUNED_AT_ONCE = 64
"""Rows of the journal that one transaction deletes: others wait for it."""


@dataclass(frozen=True)
class _Kept:
    """A snapshot and where it is."""

    info: SnapshotInfo
    file: str
    chain: bytes


def _age(kept: _Kept) -> tuple[int, int]:
    """Sorts snapshots, the oldest first. One that was copied before a barrier may be recorded after it."""
    return kept.info.number, kept.info.id


@dataclass(frozen=True)
class _Head:
    """The newest thing that is known of a run."""

    position: Position
    step: int


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
        self._lock = _lock(directory)
        try:
            try:
                self._files.mkdir(mode=0o700, exist_ok=True)
                sync_directory(directory)
                self._marks = Marks(directory / "acknowledged")
            except OSError as error:
                raise StoreError(f"cannot write to {directory}: {error.strerror}") from error
            database = journal.open_database(directory / "journal.sqlite3")
            sync_directory(directory)
            self._numbers: dict[str, int] = {}
            self._runs: dict[str, StoredRun] = {}
            self._kept: dict[str, list[_Kept]] = {}
            self._heads: dict[str, _Head] = {}
            self._damaged: list[tuple[StoredRun, str]] = []
            self._losses: list[str] = []
            try:
                self._read(database)
            except BaseException as error:
                database.close()
                if not isinstance(error, sqlite3.Error):
                    raise
                raise StoreError(
                    f"the journal {directory / 'journal.sqlite3'} is damaged: {error}. Put a copy in its place, or "
                    "move the directory away to begin anew"
                ) from error
        except BaseException:
            os.close(self._lock)
            raise
        self._writer = Writer(database, self._committed)

    def _read(self, database: sqlite3.Connection) -> None:
        """Fills the indices; nothing is changed."""
        uids: dict[int, str] = {}
        journal.check(database)
        for number, run, good in journal.read_runs(database):
            uids[number] = run.uid
            self._numbers[run.uid] = number
            self._kept[run.uid] = []
            if good:
                self._runs[run.uid] = run
            else:
                self._damaged.append((run, "its description in the journal is damaged"))
        for number, file, chain, info in journal.read_snapshots(database):
            if number in uids:
                self._kept[uids[number]].append(_Kept(info, file, chain))
        for files in self._kept.values():
            files.sort(key=_age)
        self._acknowledged = {uid: self._marks.read(number, uid) for number, uid in uids.items()}
        self._commits: int = database.execute("SELECT count FROM commits").fetchone()[0]
        self._find_losses(uids)
        for uid in self._runs:
            kept = self._kept[uid]
            newest = Position(kept[-1].info.number, kept[-1].chain) if kept else Position(0, b"")
            self._heads[uid] = _Head(newest, kept[-1].info.step if kept else 0)

    def _find_losses(self, uids: dict[int, str]) -> None:
        noted = self._marks.read(COMMITS)
        if noted is None and self._commits:
            self._losses.append(
                f"{self.directory / 'acknowledged'} is missing or damaged: if the newest part of the journal has been "
                "lost, it cannot be seen"
            )
        elif noted is not None and noted.number > self._commits:
            self._losses.append(
                f"the journal has lost its last {noted.number - self._commits} transactions, which had been "
                "acknowledged"
            )
        for number in self._marks.owned() - set(uids):
            self._losses.append(f"run number {number} is missing from the journal, and nobody has deleted it")
        known = {kept.file for files in self._kept.values() for kept in files}
        for path in self._files.iterdir():
            unfinished = path.name.endswith(UNFINISHED)
            if path.suffix in (SUFFIX, UNFINISHED) and path.name not in known:
                if unfinished or not (self._losses or self._damaged):
                    path.unlink()  # a snapshot that nobody has been told of
                else:
                    log.warning("%s belongs to no run that is known; it stays, after what was lost", path)

    @property
    def transactions(self) -> int:
        """How many there have been since the store was opened."""
        return self._writer.transactions

    # --- runs --------------------------------------------------------------------------------------------------------

    def runs(self) -> list[StoredRun]:
        return sorted(self._runs.values(), key=lambda run: run.name)

    def damaged(self) -> list[tuple[StoredRun, str]]:
        return list(self._damaged)

    def losses(self) -> list[str]:
        return list(self._losses)

    def create(self, run: StoredRun, first: Written, replaces: str = "", label: str = "") -> Future[SnapshotInfo]:
        position = Position(0, first_link(run.uid, run.spec))

        def work(transaction: Transaction) -> SnapshotInfo:
            failpoint("create.before-insert")
            self._count(transaction)
            if replaces:
                self._delete(transaction, replaces)
            number = journal.insert_run(transaction.database, run)
            kept = self._insert_snapshot(transaction, number, first, position, label)

            def after() -> None:
                self._numbers[run.uid] = number
                self._runs[run.uid] = run
                self._kept[run.uid] = [kept]
                self._note(run.uid, _Head(position, first.snapshot.step))

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
            self._numbers.pop(uid, None)
            self._runs.pop(uid, None)
            self._heads.pop(uid, None)
            self._damaged = [(run, why) for run, why in self._damaged if run.uid != uid]
            files = self._kept.pop(uid, [])
            failpoint("delete.before-unlink")
            for kept in files:
                self._unlink(kept.file)

        transaction.after.append(after)

    def raise_epoch(self, uid: str, epoch: int) -> Future[None]:
        def work(transaction: Transaction) -> None:
            number = self._number(transaction, uid)
            run = transaction.changes.get(("run", uid), self._runs[uid])
            if epoch <= run.epoch:
                return
            run = replace(run, epoch=epoch)
            self._count(transaction)
            journal.set_epoch(transaction.database, number, run)
            transaction.changes["run", uid] = run
            transaction.after.append(lambda: self._runs.update({uid: run}))

        return self._writer.submit(work)

    # --- blocks ------------------------------------------------------------------------------------------------------

    def append(self, uid: str, entry: Entry) -> Future[Position]:
        def work(transaction: Transaction) -> Position:
            failpoint("journal.before-insert")
            number = self._number(transaction, uid)
            before = self._heads[uid].position
            position = Position(before.number + 1, next_link(before.chain, entry))
            journal.insert_entry(transaction.database, number, position, entry)
            transaction.after.append(lambda: self._note(uid, _Head(position, entry.step)))
            return position

        return self._writer.submit(work, len(entry.gradients))

    def position(self, uid: str) -> Position:
        return self._heads[uid].position

    def entries(self, uid: str, after: Position) -> Iterator[tuple[Position, Entry]]:
        number = self._numbers[uid]
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
        return self._acknowledged.get(uid)

    def note_step(self, uid: str, step: int) -> None:
        self._marks.write(self._numbers[uid], uid, self._heads[uid].position.number, step)

    # --- snapshots ---------------------------------------------------------------------------------------------------

    def write(self, uid: str, snapshot: Snapshot) -> Written:
        name = f"{uid}-{snapshot.step}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        metadata = {"gradwire": snapshot.meta, "step": str(snapshot.step), "fingerprint": snapshot.fingerprint}
        try:
            size_bytes, sha256 = write_file(self._files / name, snapshot.vectors, metadata)
        except OSError as error:
            raise refusal(error) from error
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
                before = self._heads[uid].position
                position = Position(before.number + 1, barrier_link(before.chain, written.sha256))
            kept = self._insert_snapshot(transaction, number, written, position, label)
            files = sorted([*transaction.changes.get(("kept", uid), self._kept[uid]), kept], key=_age)
            surplus = [old for old in files if not old.info.label][: -self._keep]
            for old in surplus:
                journal.delete_snapshot(transaction.database, old.info.id)
            remaining = [old for old in files if old not in surplus]

            transaction.changes["kept", uid] = remaining

            def after() -> None:
                self._kept[uid] = remaining
                if barrier:
                    self._note(uid, _Head(position, snapshot.step))
                failpoint("snapshot.after-record")
                for old in surplus:
                    self._unlink(old.file)
                self._prune(uid, remaining[-2].info.number if len(remaining) > 1 else position.number)

            transaction.after.append(after)
            return kept.info

        return self._writer.submit(work)

    def snapshots(self, uid: str) -> list[SnapshotInfo]:
        return [kept.info for kept in reversed(self._kept[uid])]

    def load(self, uid: str, snapshot_id: int) -> Snapshot:
        kept = next((kept for kept in self._kept[uid] if kept.info.id == snapshot_id), None)
        if kept is None:
            raise KeyError(snapshot_id)
        metadata, vectors = read_file(self._files / kept.file, kept.info.sha256)
        position = Position(kept.info.number, kept.chain)
        return Snapshot(kept.info.step, position, metadata["fingerprint"], metadata["gradwire"], vectors)

    def cut(self, uid: str, snapshot_id: int, position: Position, step: int) -> None:
        ids = [kept.info.id for kept in self._kept[uid]]
        newer = self._kept[uid][ids.index(snapshot_id) + 1 :]

        def work(transaction: Transaction) -> None:
            number = self._number(transaction, uid)
            if newer or journal.last_number(transaction.database, number) > position.number:
                self._count(transaction)
                journal.delete_entries(transaction.database, number, position.number + 1, journal.MAX_NUMBER)
                for kept in newer:
                    journal.delete_snapshot(transaction.database, kept.info.id)

            def after() -> None:
                self._kept[uid] = [kept for kept in self._kept[uid] if kept not in newer]
                self._note(uid, _Head(position, step))
                for kept in newer:
                    path = self._files / kept.file
                    if path.exists():
                        path.rename(path.with_suffix(".damaged"))

            transaction.after.append(after)

        self._writer.submit(work).result()

    # --- helpers -----------------------------------------------------------------------------------------------------

    def _number(self, transaction: Transaction, uid: str) -> int:
        """Raises RunNotFound: it may have been deleted since the job was submitted."""
        if uid not in self._numbers or ("deleted", uid) in transaction.changes:
            raise RunNotFound("the run has been deleted")
        return self._numbers[uid]

    def _insert_snapshot(
        self, transaction: Transaction, number: int, written: Written, position: Position, label: str
    ) -> _Kept:
        info = SnapshotInfo(
            0, written.snapshot.step, position.number, time.time(), written.size_bytes, written.sha256, label
        )
        info = journal.insert_snapshot(transaction.database, number, written.name, info, position.chain)
        return _Kept(info, written.name, position.chain)

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
            transaction.changes["commits"] = self._commits + 1
            transaction.database.execute("UPDATE commits SET count = ?", (self._commits + 1,))

    def _committed(self, transaction: Transaction) -> None:
        if "commits" in transaction.changes:
            self._commits = transaction.changes["commits"]
            self._marks.write(COMMITS, "", self._commits, 0)

    def _note(self, uid: str, head: _Head) -> None:
        self._heads[uid] = head
        self._marks.write(self._numbers[uid], uid, head.position.number, head.step)

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


def _lock(directory: Path) -> int:
    """Makes the directory and locks it; returns the descriptor that holds the lock. Raises StoreError."""
    path = directory / "lock"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"cannot write to {directory}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise StoreError(f"another server, process {owner or 'unknown'}, uses {directory}") from None
        raise StoreError(f"cannot lock {path}: {error.strerror}") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
