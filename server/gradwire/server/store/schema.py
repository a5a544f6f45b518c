"""The database: its tables, its settings, and how one that an older version has made becomes one of this version's.

SCHEMA 4 IS MEANT TO LAST. What is still to be kept goes into JSON that is there already, and gets no columns:

==================  ====================================================================================================
``runs.name``       the name inside: of tenant T ``tenants/T/runs/NAME``, of tenant ``default`` ``runs/NAME``
``runs.spec``       what a run is from its creation on. The chain of its journal begins with it: it never changes
``runs.extra``      what changes of a run and is none of its values: how long it may lie unused and when it was used
                    last, leases, where its parts are, ``next_snapshot``: the id of its next snapshot
``snapshots.extra`` what is known of a snapshot and is not in its file: ``number``: its id among its run's own (a row
                    without one, of an older server, has its row's id)
``journal.block``   all that a record says besides its gradients: the header and receipt of a block, the contributors of
                    a round (whose worker is ""), the part and the epoch of a row that prepares one
==================  ====================================================================================================

What belongs to a run's state at one step, such as how far each worker has come, is in the snapshot's file. All of this
is covered by a digest or by the chain. Each is a JSON object in which ``version`` is the least version that a reader
must know (`gradwire.server.durability.records`): keys that may be overlooked are added without it; where they must not
be, it rises, and older servers refuse this run, by name, and serve the others.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from gradwire.server.store.base import EMPTY, StoreError

SCHEMA = 4
APPLICATION = 0x67726177
"""Tells our databases from others, "graw"."""

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

_EXTRA = f"extra TEXT NOT NULL DEFAULT '{EMPTY}'"

_TABLES = (
    f"""CREATE TABLE runs (
  id INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE, spec TEXT NOT NULL,
  request_id TEXT NOT NULL, epoch INTEGER NOT NULL, digest BLOB NOT NULL, {_EXTRA})""",
    f"""CREATE TABLE snapshots (
  id INTEGER PRIMARY KEY AUTOINCREMENT, run INTEGER NOT NULL, file TEXT NOT NULL, step INTEGER NOT NULL,
  number INTEGER NOT NULL, chain BLOB NOT NULL, created REAL NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL,
  label TEXT NOT NULL, digest BLOB NOT NULL, {_EXTRA})""",
    """CREATE TABLE journal (
  key INTEGER PRIMARY KEY, worker TEXT NOT NULL, sequence INTEGER NOT NULL, step INTEGER NOT NULL, block TEXT NOT NULL,
  fingerprint TEXT NOT NULL, gradients BLOB NOT NULL, chain BLOB NOT NULL)""",
    "CREATE TABLE commits (count INTEGER NOT NULL)",
    "INSERT INTO commits VALUES (0)",
    f"PRAGMA application_id={APPLICATION}",
    f"PRAGMA user_version={SCHEMA}",
)

_MIGRATIONS = {
    3: (
        f"ALTER TABLE runs ADD COLUMN {_EXTRA}",
        f"ALTER TABLE snapshots ADD COLUMN {_EXTRA}",
        "PRAGMA user_version=4",
    ),
}
"""From an older schema to the next one."""


def open_database(path: Path) -> sqlite3.Connection:
    """Opens the database; makes it where there is none, and brings it to this version's schema. Raises StoreError."""
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
        version = _value(database, "user_version")
        if not version:
            _transact(database, _TABLES)
        while version in _MIGRATIONS:
            check(database)
            _transact(database, _MIGRATIONS[version])
            version = _value(database, "user_version")
    except BaseException as error:
        database.close()
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"cannot open the journal {path}: {error}") from error
        raise
    return database


def check(database: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError when the structure of the database is damaged: writing to it would do more harm."""
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(str(found).replace("\n", " "))


def _require_ours(database: sqlite3.Connection, path: Path) -> None:
    """Raises StoreError for a database that is neither empty nor one that this version or an older one has made."""
    if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return
    if _value(database, "application_id") != APPLICATION:
        raise StoreError(f"{path} is a database, but not one of gradwire's; choose another directory")
    version = _value(database, "user_version")
    if version != SCHEMA and version not in _MIGRATIONS:
        raise StoreError(f"{path} has version {version}; this server knows {SCHEMA}. Use the one that made it")


def _transact(database: sqlite3.Connection, statements: tuple[str, ...]) -> None:
    """All of them or none; whatever becomes of this process."""
    database.execute("BEGIN IMMEDIATE")
    for statement in statements:
        database.execute(statement)
    database.execute("COMMIT")


def _value(database: sqlite3.Connection, pragma: str) -> int:
    value: int = database.execute(f"PRAGMA {pragma}").fetchone()[0]
    return value
