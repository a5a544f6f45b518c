"""The rows: runs, what is known of their snapshots, and the blocks applied since. Everything here is one statement or
two; who calls it has the transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gradwire.server.store.base import EMPTY, Entry, Position, SnapshotInfo, StoredRun
from gradwire.server.store.chain import digest
from gradwire.server.store.own_keys import NEXT_SNAPSHOT, NUMBER, with_key, without_key

_NUMBER_BITS = 36
MAX_NUMBER = 2**_NUMBER_BITS - 1
"""A row's key is the run's number, then the block's: rows of a run lie next to each other, in order."""


# --- runs ------------------------------------------------------------------------------------------------------------


def insert_run(database: sqlite3.Connection, run: StoredRun, next_snapshot: int) -> int:
    """Returns the run's number."""
    run = _as_stored(run, next_snapshot)
    cursor = database.execute(
        "INSERT INTO runs (uid, name, spec, request_id, epoch, extra, digest) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (run.uid, run.name, run.spec, run.request_id, run.epoch, run.extra, _run_digest(run)),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def update_run(database: sqlite3.Connection, run_id: int, run: StoredRun, next_snapshot: int) -> None:
    """Writes what may change of a run: its epoch, what is extra, the id of its next snapshot."""
    run = _as_stored(run, next_snapshot)
    database.execute(
        "UPDATE runs SET epoch = ?, extra = ?, digest = ? WHERE id = ?",
        (run.epoch, run.extra, _run_digest(run), run_id),
    )


def delete_run(database: sqlite3.Connection, run_id: int) -> None:
    database.execute("DELETE FROM journal WHERE key BETWEEN ? AND ?", (_key(run_id, 0), _key(run_id, MAX_NUMBER)))
    database.execute("DELETE FROM snapshots WHERE run = ?", (run_id,))
    database.execute("DELETE FROM runs WHERE id = ?", (run_id,))


def read_runs(database: sqlite3.Connection) -> Iterator[tuple[int, StoredRun, int, bool]]:
    """(number, run, id of its next snapshot, whether it is what was written). Raises sqlite3.Error."""
    last_rows = dict(database.execute("SELECT run, max(id) FROM snapshots GROUP BY run"))
    for number, *row, check in database.execute(
        "SELECT id, uid, name, spec, request_id, epoch, extra, digest FROM runs"
    ):
        run = StoredRun(*row)
        if check == _run_digest(run):
            extra, next_snapshot = without_key(run.extra, NEXT_SNAPSHOT)
            yield number, replace(run, extra=extra), next_snapshot or last_rows.get(number, 0) + 1, True
        else:
            uid, name, spec, request_id = map(str, row[:4])
            yield number, StoredRun(uid, name, spec, request_id), 1, False


def _as_stored(run: StoredRun, next_snapshot: int) -> StoredRun:
    return replace(run, extra=with_key(run.extra, NEXT_SNAPSHOT, next_snapshot))


def _run_digest(run: StoredRun) -> bytes:
    return digest(run.uid, run.name, run.spec, run.request_id, run.epoch, *_digested(run.extra))


def _digested(extra: str) -> tuple[str, ...]:
    """Rows without anything extra have the digest that they had before there was such a column: schema 3's stay."""
    return () if extra == EMPTY else (extra,)


# --- snapshots -------------------------------------------------------------------------------------------------------


def insert_snapshot(database: sqlite3.Connection, run_id: int, file: str, info: SnapshotInfo, chain: bytes) -> int:
    """Returns the row's number."""
    row = (run_id, file, info.step, info.number, chain, info.created, info.size_bytes, info.sha256, info.label)
    extra = with_key(info.extra, NUMBER, info.id)
    cursor = database.execute(
        "INSERT INTO snapshots (run, file, step, number, chain, created, size, sha256, label, extra, digest) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, extra, _snapshot_digest(row, extra)),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def delete_snapshot(database: sqlite3.Connection, row: int) -> None:
    database.execute("DELETE FROM snapshots WHERE id = ?", (row,))


def read_snapshots(database: sqlite3.Connection) -> Iterator[tuple[int, int, str, bytes, SnapshotInfo]]:
    """(row's number, run's, file, chain, info) of those that are what was written. Raises sqlite3.Error."""
    for number, *row, text, check in database.execute(
        "SELECT id, run, file, step, number, chain, created, size, sha256, label, extra, digest FROM snapshots "
        "ORDER BY id"
    ):
        if check == _snapshot_digest(row, text):
            run_id, file, step, place, chain, created, size, sha256, label = row
            extra, snapshot_id = without_key(text, NUMBER)
            info = SnapshotInfo(snapshot_id or number, step, place, created, size, sha256, label, extra)
            yield number, run_id, file, chain, info


def _snapshot_digest(row: Any, extra: str) -> bytes:
    return digest(*(field.hex() if isinstance(field, bytes) else field for field in row), *_digested(extra))


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
