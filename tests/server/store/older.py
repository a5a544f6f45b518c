"""Data directories as older versions of the store would have left them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradwire.server.store.chain import digest

_DIGESTED = {
    "runs": "uid, name, spec, request_id, epoch",
    "snapshots": "run, file, step, number, chain, created, size, sha256, label",
}


@contextmanager
def database(directory: Path) -> Iterator[sqlite3.Connection]:
    """The database of a store that nobody uses now."""
    opened = sqlite3.connect(directory / "journal.sqlite3", isolation_level=None)
    opened.execute("PRAGMA locking_mode=EXCLUSIVE")
    try:
        yield opened
    finally:
        opened.close()


def without_numbers(directory: Path) -> None:
    """As a server would have left it that numbered the snapshots of all runs together."""
    with database(directory) as opened:
        opened.execute("BEGIN IMMEDIATE")
        for table, columns in _DIGESTED.items():
            for row, *fields in opened.execute(f"SELECT id, {columns} FROM {table}").fetchall():
                hexed = [field.hex() if isinstance(field, bytes) else field for field in fields]
                opened.execute(f"UPDATE {table} SET extra = '{{}}', digest = ? WHERE id = ?", (digest(*hexed), row))
        opened.execute("COMMIT")


def to_schema_3(directory: Path) -> None:
    """As a server that knew schema 3 would have left it. `test_schema` compares it with what one has left."""
    without_numbers(directory)
    with database(directory) as opened:
        opened.execute("BEGIN IMMEDIATE")
        for table in ("runs", "snapshots"):
            assert opened.execute(f"SELECT count(*) FROM {table} WHERE extra != '{{}}'").fetchone() == (0,)
            opened.execute(f"ALTER TABLE {table} DROP COLUMN extra")
        opened.execute("PRAGMA user_version=3")
        opened.execute("COMMIT")


def version_of(directory: Path) -> int:
    with database(directory) as opened:
        version: int = opened.execute("PRAGMA user_version").fetchone()[0]
        return version


def tables_of(directory: Path) -> dict[str, list[tuple[object, ...]]]:
    """The columns of each table."""
    with database(directory) as opened:
        names = [name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        return {name: opened.execute(f"PRAGMA table_info({name})").fetchall() for name in names}
