"""The database: runs, what is known of their snapshots, and the blocks applied since. Everything here is one statement
or two; who calls it has the transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradwire.server.store.base import Entry, Position, SnapshotInfo, StoredRun, StoreError
from gradwire.server.store.chain import digest

SCHEMA = 3
APPLICATION = 0x67726177
"""Tells our databases from others, "graw"."""

_NUMBER_BITS = 36
MAX_NUMBER = 2**_NUMBER_BITS - 1
"""A row's key is the run's number, then the block's: rows of a run lie next to each other, in order."""

_PRAGMAS = (
    # A page is a write: with twice the usual size a large gradient takes half as many, a small one no more bytes.
    "page_size=8192",
    "journal_mode=WAL",
    "synchronous=FULL",
    "fullfsync=ON",
    "checkpoint_fullfsync=ON",
    "wal_autocheckpoint=0",
    f"journal_size_limit={64 * 2**20}",
    "cell_size_check=ON",
    "secure_delete=OFF",
)

_TABLES = """
CREATE TABLE runs (
  id INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE, spec TEXT NOT NULL,
  request_id TEXT NOT NULL, epoch INTEGER NOT NULL, digest BLOB NOT NULL);
CREATE TABLE snapshots (
  id INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER NOT NULL, file TEXT NOT NULL, step INTEGER NOT NULL,
  number INTEGER NOT NULL, chain BLOB NOT NULL, created REAL NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL,
  label TEXT NOT NULL, digest BLOB NOT NULL);
CREATE TABLE journal (
  key INTEGER PRIMARY KEY, worker TEXT NOT NULL, sequence INTEGER NOT NULL, step INTEGER NOT NULL, block TEXT NOT NULL,
  fingerprint TEXT NOT NULL, gradients BLOB NOT NULL, chain BLOB NOT NULL);
CREATE TABLE commits (count INTEGER NOT NULL);
INSERT INTO commits VALUES (0);
"""


def open_database(path: Path) -> sqlite3.Connection:
    """Opens the database, makes it where there is none. Raises StoreError."""
    try:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise StoreError(f"cannot open the journal {path}: {error}") from error
    try:
        database.text_factory = lambda data: data.decode("utf-8", "replace")  # damage is found by the digests
        # One process only, which the lock file sees to: then the index of the log needs no file of its own.
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        _require_ours(database, path)
        for pragma in _PRAGMAS:
            database.execute(f"PRAGMA {pragma}")
        if not _value(database, "user_version"):
            database.execute("BEGIN IMMEDIATE")
            for statement in filter(str.strip, _TABLES.split(";\n")):
                database.execute(statement)
            database.execute(f"PRAGMA application_id={APPLICATION}")
            database.execute(f"PRAGMA user_version={SCHEMA}")
            database.execute("COMMIT")
    except BaseException as error:
        database.close()
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"cannot open the journal {path}: {error}") from error
        raise
    return database


def _require_ours(database: sqlite3.Connection, path: Path) -> None:
    """Raises StoreError for a database that is neither empty nor one that this version has made."""
    if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return
    if _value(database, "application_id") != APPLICATION:
        raise StoreError(f"{path} is a database, but not one of gradwire's; choose another directory")
    version = _value(database, "user_version")
    if version != SCHEMA:
        raise StoreError(f"{path} has version {version}; this server knows {SCHEMA}. Use the one that made it")


def _value(database: sqlite3.Connection, pragma: str) -> int:
    value: int = database.execute(f"PRAGMA {pragma}").fetchone()[0]
    return value


def check(database: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError when the structure of the database is damaged: writing to it would do more harm."""
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(str(found).replace("\n", " "))


# --- runs ------------------------------------------------------------------------------------------------------------


def insert_run(database: sqlite3.Connection, run: StoredRun) -> int:
    """Returns the run's number."""
    row = (run.uid, run.name, run.spec, run.request_id, run.epoch)
    cursor = database.execute(
        "INSERT INTO runs (uid, name, spec, request_id, epoch, digest) VALUES (?, ?, ?, ?, ?, ?)", (*row, digest(*row))
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def set_epoch(database: sqlite3.Connection, run_id: int, run: StoredRun) -> None:
    row = (run.uid, run.name, run.spec, run.request_id, run.epoch)
    database.execute("UPDATE runs SET epoch = ?, digest = ? WHERE id = ?", (run.epoch, digest(*row), run_id))


def delete_run(database: sqlite3.Connection, run_id: int) -> None:
    database.execute("DELETE FROM journal WHERE key BETWEEN ? AND ?", (_key(run_id, 0), _key(run_id, MAX_NUMBER)))
    database.execute("DELETE FROM snapshots WHERE run = ?", (run_id,))
    database.execute("DELETE FROM runs WHERE id = ?", (run_id,))


def read_runs(database: sqlite3.Connection) -> Iterator[tuple[int, StoredRun, bool]]:
    """(number, run, whether it is what was written). Raises sqlite3.Error."""
    for number, *row, check in database.execute("SELECT id, uid, name, spec, request_id, epoch, digest FROM runs"):
        good = check == digest(*row)
        uid, name, spec, request_id, epoch = row
        yield number, StoredRun(str(uid), str(name), str(spec), str(request_id), epoch if good else 0), good


# --- snapshots -------------------------------------------------------------------------------------------------------


def insert_snapshot(
    database: sqlite3.Connection, run_id: int, file: str, info: SnapshotInfo, chain: bytes
) -> SnapshotInfo:
    """Returns ``info`` with its id."""
    row = (run_id, file, info.step, info.number, chain, info.created, info.size_bytes, info.sha256, info.label)
    cursor = database.execute(
        "INSERT INTO snapshots (run, file, step, number, chain, created, size, sha256, label, digest) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, _snapshot_digest(row)),
    )
    assert cursor.lastrowid is not None
    return SnapshotInfo(cursor.lastrowid, *(getattr(info, name) for name in list(vars(info))[1:]))


def delete_snapshot(database: sqlite3.Connection, snapshot_id: int) -> None:
    database.execute("DELETE FROM snapshots WHERE id = ?", (snapshot_id,))


def read_snapshots(database: sqlite3.Connection) -> Iterator[tuple[int, str, bytes, SnapshotInfo]]:
    """(run's number, file, chain, info) of those rows that are what was written. Raises sqlite3.Error."""
    for snapshot_id, *row, check in database.execute(
        "SELECT id, run, file, step, number, chain, created, size, sha256, label, digest FROM snapshots ORDER BY id"
    ):
        if check == _snapshot_digest(row):
            run_id, file, step, number, chain, created, size, sha256, label = row
            yield run_id, file, chain, SnapshotInfo(snapshot_id, step, number, created, size, sha256, label)


def _snapshot_digest(row: Any) -> bytes:
    return digest(*(field.hex() if isinstance(field, bytes) else field for field in row))


# --- blocks ----------------------------------------------------------------------------------------------------------


def insert_entry(database: sqlite3.Connection, run_id: int, position: Position, entry: Entry) -> None:
    """``position`` is the one after the block."""
    database.execute(
        "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            _key(run_id, position.number),
            entry.worker_id,
            entry.sequence,
            entry.step,
            entry.block,
            entry.fingerprint,
            entry.gradients,
            position.chain,
        ),
    )


def next_entry(database: sqlite3.Connection, run_id: int, after: int) -> tuple[Position, Entry] | None:
    """The first block after number ``after`` that there is. Raises sqlite3.Error."""
    row = database.execute(
        "SELECT * FROM journal WHERE key > ? AND key < ? ORDER BY key LIMIT 1",
        (_key(run_id, after), _key(run_id + 1, 0)),
    ).fetchone()
    if row is None:
        return None
    if [type(field) for field in row] != [int, str, int, int, str, str, bytes, bytes]:
        raise sqlite3.DatabaseError("a row has fields of other types")
    key, worker_id, sequence, step, block, fingerprint, gradients, chain = row
    entry = Entry(worker_id, sequence, step, block, gradients, fingerprint)
    return Position(key - _key(run_id, 0), chain), entry


def next_number(database: sqlite3.Connection, run_id: int, after: int) -> int | None:
    """The number of the first block after ``after``. Raises sqlite3.Error."""
    key = database.execute(
        "SELECT min(key) FROM journal WHERE key BETWEEN ? AND ?",
        (_key(run_id, after + 1), _key(run_id, MAX_NUMBER)),
    ).fetchone()[0]
    return None if key is None else key - _key(run_id, 0)


def last_number(database: sqlite3.Connection, run_id: int) -> int:
    """The number of a run's last block in the journal; 0: none. Raises sqlite3.Error."""
    key = database.execute(
        "SELECT max(key) FROM journal WHERE key BETWEEN ? AND ?", (_key(run_id, 0), _key(run_id, MAX_NUMBER))
    ).fetchone()[0]
    return 0 if key is None else key - _key(run_id, 0)


def delete_entries(database: sqlite3.Connection, run_id: int, first: int, last: int) -> int:
    """Returns how many there were."""
    return database.execute(
        "DELETE FROM journal WHERE key BETWEEN ? AND ?", (_key(run_id, first), _key(run_id, last))
    ).rowcount


def _key(run_id: int, number: int) -> int:
    return (run_id << _NUMBER_BITS) + number
