"""From an older schema to this one: all or nothing, and nothing that was damaged becomes good by it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from gradwire.server.store import journal, schema
from gradwire.server.store.base import Position, SnapshotInfo, StoreError
from gradwire.server.store.disk import DiskStore
from gradwire.server.store.schema import SCHEMA
from tests.server.durability.write_old_store import ARCHIVES
from tests.server.store.older import database, tables_of, to_schema_3, version_of, without_numbers
from tests.server.store.stored import append, create, killed, same, save, snapshot, steps_after, stored_run

STATEMENTS = 5
"""Of the migration's transaction: its begin, two columns, the version, its end."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A killed server's directory of schema 3: a run with a labelled snapshot and two blocks after it, and another."""
    store = DiskStore(tmp_path / "made")
    uid = create(store)
    append(store, uid, 1, 2)
    save(store, uid, 2, label="two")
    append(store, uid, 3, 4)
    create(store, "y", step=7)
    copy = killed(store.directory, tmp_path / "data")
    store.close()
    to_schema_3(copy)
    return copy


def check_all_is_there(directory: Path) -> None:
    store = DiskStore(directory)
    try:
        assert store.runs() == [stored_run("x"), stored_run("y")]
        assert (store.damaged(), store.losses()) == ([], [])
        uid, other = (run.uid for run in store.runs())
        newest, first = store.snapshots(uid)
        assert [(info.step, info.label, info.extra) for info in (newest, first)] == [(2, "two", "{}"), (0, "", "{}")]
        found = store.load(uid, newest.id)
        assert same(found, snapshot(2))
        assert steps_after(store, uid, found.position) == [3, 4]
        assert store.load(other, store.snapshots(other)[0].id).step == 7
    finally:
        store.close()
    assert version_of(directory) == SCHEMA


def test_what_is_made_here_is_what_a_server_that_knew_schema_3_has_left(tmp_path: Path, old: Path) -> None:
    with tarfile.open(ARCHIVES / "schema3.tar.gz") as archive:
        archive.extractall(tmp_path / "left", filter="data")
    assert version_of(tmp_path / "left" / "data") == version_of(old) == 3
    assert tables_of(tmp_path / "left" / "data") == tables_of(old)


def test_a_store_of_schema_3_is_opened_and_has_the_tables_of_a_new_one(tmp_path: Path, old: Path) -> None:
    check_all_is_there(old)
    DiskStore(tmp_path / "new").close()
    assert tables_of(old) == tables_of(tmp_path / "new")
    check_all_is_there(old)
    store = DiskStore(old)
    uid = store.runs()[0].uid
    newest = store.snapshots(uid)[0]
    *_, (end, _) = store.entries(uid, store.load(uid, newest.id).position)
    store.cut(uid, newest.id, end, 4)
    append(store, uid, 5)
    store.raise_epoch(uid, 3).result()
    store.close()
    store = DiskStore(old)
    assert store.runs()[0].epoch == 3
    assert steps_after(store, uid, store.load(uid, store.snapshots(uid)[0].id).position) == [3, 4, 5]
    store.close()


class Dying(sqlite3.Connection):
    """Ends its process before one of a transaction's statements."""

    left = 0
    counting = False

    def execute(self, sql: str, *arguments: object) -> sqlite3.Cursor:
        self.counting = self.counting or sql.startswith("BEGIN")
        if self.counting:
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            self.counting = sql != "COMMIT"
        return super().execute(sql, *arguments)  # type: ignore[arg-type]


def open_and_die(directory: Path, statement: int) -> int:
    """Opens a store and is killed before a statement of the migration; the process's exit status."""
    program = (
        "import sqlite3, sys; from pathlib import Path; from gradwire.server.store.schema import open_database\n"
        "from tests.server.store.test_schema import Dying\n"
        "connect = sqlite3.connect; Dying.left = int(sys.argv[2])\n"
        "sqlite3.connect = lambda *args, **kwargs: connect(*args, **kwargs, factory=Dying)\n"
        "open_database(Path(sys.argv[1]) / 'journal.sqlite3').close()\n"
    )
    command = [sys.executable, "-c", program, str(directory), str(statement)]
    return subprocess.run(command, check=False, timeout=60, cwd=Path(__file__).parents[3]).returncode


@pytest.mark.parametrize("statement", range(STATEMENTS))
def test_killed_in_the_middle_it_is_still_schema_3_and_opens_again(old: Path, statement: int) -> None:
    assert open_and_die(old, statement) == -signal.SIGKILL
    untouched = killed(old, old.with_name("untouched"))
    assert version_of(untouched) == 3
    assert "extra" not in {column[1] for columns in tables_of(untouched).values() for column in columns}
    check_all_is_there(old)


def test_killed_behind_it_it_is_schema_4(old: Path) -> None:
    assert open_and_die(old, STATEMENTS) == 0, "the test above has left out a statement"
    assert version_of(old) == SCHEMA


def test_a_migration_that_fails_leaves_schema_3(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        first, *others = schema._MIGRATIONS[3]
        patch.setitem(schema._MIGRATIONS, 3, (first, first, *others))
        with pytest.raises(StoreError, match=r"cannot open the journal .*journal\.sqlite3: duplicate column"):
            DiskStore(old)
    assert version_of(old) == 3
    check_all_is_there(old)


def test_what_was_damaged_stays_damaged(old: Path) -> None:
    with database(old) as opened:
        opened.execute("UPDATE runs SET epoch = 9 WHERE name = 'runs/y'")
        opened.execute("UPDATE snapshots SET step = 3 WHERE label = 'two'")
    store = DiskStore(old)
    assert [run.name for run in store.runs()] == ["runs/x"]
    assert [run.name for run, _ in store.damaged()] == ["runs/y"]
    assert [info.step for info in store.snapshots(stored_run().uid)] == [0]
    store.close()


def test_a_database_whose_structure_is_damaged_is_not_written_to(old: Path) -> None:
    with database(old) as opened:
        opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        opened.execute("PRAGMA writable_schema=ON")
        opened.execute("UPDATE sqlite_master SET rootpage = 500 WHERE name = 'journal'")
    before = (old / "journal.sqlite3").read_bytes()
    with pytest.raises(StoreError, match=r"journal\.sqlite3"):
        DiskStore(old)
    assert (old / "journal.sqlite3").read_bytes() == before


def test_what_is_extra_lasts_and_is_covered_by_the_digests(tmp_path: Path) -> None:
    extra = '{"ttl_seconds": 60}'
    store = DiskStore(tmp_path)
    run = stored_run(extra=extra)
    store.create(run, store.write(run.uid, snapshot(0))).result()
    store.raise_epoch(run.uid, 2).result()
    store.close()
    info = SnapshotInfo(7, 0, 0, 0.0, 0, "sha256", "labelled", '{"of": 1}')
    with database(tmp_path) as opened:
        journal.insert_snapshot(opened, 1, "file", info, Position(0, b"chain").chain)
    store = DiskStore(tmp_path)
    assert store.runs() == [stored_run(extra=extra, epoch=2)]
    assert [(info.id, info.extra) for info in store.snapshots(run.uid)] == [(7, '{"of": 1}'), (1, "{}")]
    store.close()
    for table, where, other in (
        ("snapshots", "label != ''", '{"of": 1, "number": 2}'),
        ("snapshots", "label != ''", "{}"),
        ("snapshots", "label = ''", '{"number": 2}'),
        ("runs", "TRUE", '{"ttl_seconds": 61}'),
        ("runs", "TRUE", "{}"),
    ):
        copy = killed(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{table}-{abs(hash((where, other)))}"))
        with database(copy) as opened:
            opened.execute(f"UPDATE {table} SET extra = ? WHERE {where}", (other,))
        store = DiskStore(copy)
        assert len(store.damaged()) == (table == "runs")
        if table == "snapshots":
            assert len(store.snapshots(run.uid)) == 1
        store.close()


def test_snapshots_that_were_numbered_together_keep_their_ids(old: Path) -> None:
    store = DiskStore(old)
    uid, other = (run.uid for run in store.runs())
    assert [info.id for info in store.snapshots(uid)] == [2, 1]
    assert [info.id for info in store.snapshots(other)] == [3]
    assert [save(store, uid, step, label="kept") for step in (4, 5)] == [3, 4]
    assert save(store, other, 8) == 4
    store.close()


def test_a_server_that_numbers_them_together_may_come_in_between(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "data")
    uid, other = create(store), create(store, "y")
    save(store, other, 1, label="kept")
    assert save(store, uid, 1, label="kept") == 2
    store.close()
    info = SnapshotInfo(0, 2, 0, 0.0, 0, "sha256", "of the old server")
    with database(tmp_path / "data") as opened:
        row = journal.insert_snapshot(opened, 1, "file", info, Position(0, b"chain").chain)
    without_numbers(tmp_path / "data")
    store = DiskStore(tmp_path / "data")
    assert [each.id for each in store.snapshots(uid)] == [row, 4, 1]
    assert save(store, uid, 3) == row + 1
    store.close()
