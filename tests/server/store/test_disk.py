"""What only a store on disk does: locks, group commit, and failures of the disk under it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from gradwire.server import failpoints
from gradwire.server.store.base import StoreError
from gradwire.server.store.disk import DiskStore
from gradwire.server.store.schema import SCHEMA
from gradwire.wire.errors import StorageFailed, StorageFull
from tests.server.store.stored import WAIT_SECONDS, append, create, entry, killed, save, snapshot, steps_after


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    opened = DiskStore(tmp_path / "data")
    yield opened
    failpoints.disarm()
    opened.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mounted], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield mounted
    subprocess.run(["umount", "--lazy", mounted], check=True)


def test_a_second_server_is_locked_out(store: DiskStore) -> None:
    with pytest.raises(StoreError, match=f"another server, process {os.getpid()}, uses .*data"):
        DiskStore(store.directory)


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = "import os, sys; from gradwire.server.store.disk import DiskStore; from pathlib import Path\n"
    program += "DiskStore(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program, tmp_path / "data"], check=False, timeout=60)
    DiskStore(tmp_path / "data").close()


def test_what_a_killed_server_has_not_flushed_is_safe_before_it_is_read(
    store: DiskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have written a block and not flushed it: the next server knows of it, and tells others."""
    append(store, create(store), 1)
    left = killed(store.directory, tmp_path / "left")
    done: list[str] = []
    fsync, connect = os.fsync, sqlite3.connect

    def noted(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def opened(path: Any, **options: Any) -> Any:
        done.append("opened")
        return connect(path, **options)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(sqlite3, "connect", opened)
    DiskStore(left).close()
    assert "journal.sqlite3-wal" in done[: done.index("opened")]


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write to .*file/data: Not a directory"):
        DiskStore(tmp_path / "file" / "data")


def test_a_read_only_directory_is_an_error(small_disk: Path) -> None:
    DiskStore(small_disk / "data").close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match=r"cannot write to .*data: Read-only file system"):
        DiskStore(small_disk / "data")


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    database = sqlite3.connect(tmp_path / "journal.sqlite3")
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    with pytest.raises(StoreError, match="not one of gradwire's"):
        DiskStore(tmp_path)
    (tmp_path / "journal.sqlite3").write_text("a" * 5000)
    with pytest.raises(StoreError, match="file is not a database"):
        DiskStore(tmp_path)


def test_a_database_of_a_later_version_is_left_alone(store: DiskStore) -> None:
    import sqlite3

    store.close()
    database = sqlite3.connect(store.directory / "journal.sqlite3")
    database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    database.close()
    with pytest.raises(StoreError, match=rf"has version {SCHEMA + 1}; this server knows {SCHEMA}"):
        DiskStore(store.directory)


def test_concurrent_runs_share_a_flush(store: DiskStore) -> None:
    uids = [create(store, f"run{i}") for i in range(64)]
    before = store.transactions
    failpoints.arm("journal.before-commit", "sleep:0.05", at_hit=1)
    futures = [store.append(uid, entry(1)) for uid in uids]
    wait(futures, WAIT_SECONDS)
    assert {future.result().number for future in futures} == {1}
    assert store.transactions - before <= 3


def test_acknowledged_means_flushed(store: DiskStore) -> None:
    """The future is done after the commit, and only then; what a killed server leaves has the block."""
    uid = create(store)
    start = store.position(uid)
    failpoints.arm("journal.before-commit", "sleep:0.3", at_hit=1)
    future = store.append(uid, entry(1))
    assert not future.done()
    future.result(WAIT_SECONDS)
    copy = DiskStore(killed(store.directory, store.directory.with_name("copy")))
    assert steps_after(copy, uid, start) == [1]
    copy.close()


@pytest.mark.parametrize("point", ["journal.before-insert", "journal.before-commit"])
@pytest.mark.parametrize(("action", "error"), [("raise", StorageFailed), ("full", StorageFull)])
def test_a_block_that_cannot_be_written_changes_nothing(
    store: DiskStore, point: str, action: str, error: type[Exception]
) -> None:
    uid = create(store)
    start = append(store, uid, 1)
    failpoints.arm(point, action)
    with pytest.raises(error, match="nothing was applied") as caught:
        append(store, uid, 2)
    assert caught.value.applied is False  # type: ignore[attr-defined]
    failpoints.disarm()
    assert store.position(uid) == start
    append(store, uid, 2, 3)
    assert steps_after(store, uid, start) == [2, 3]


def test_of_many_blocks_in_one_transaction_only_those_fail_that_must(store: DiskStore) -> None:
    uids = [create(store, f"run{i}") for i in range(4)]
    failpoints.arm("journal.before-commit", "sleep:0.1", at_hit=1)
    first = store.append(uids[0], entry(1))
    first_hit_of_the_batch = 2
    failpoints.arm("journal.before-insert", "raise", at_hit=first_hit_of_the_batch)
    futures = [store.append(uid, entry(1)) for uid in uids[1:]]
    wait([first, *futures], WAIT_SECONDS)
    assert [future.exception() for future in (first, *futures)] == [None] * 4, "each was tried once more, alone"


def test_after_a_failed_flush_nothing_more_is_taken_and_the_outcome_is_unknown(store: DiskStore) -> None:
    uid = create(store)
    failpoints.arm("journal.commit", "raise")
    with pytest.raises(StorageFailed, match="not known") as caught:
        append(store, uid, 1)
    assert caught.value.applied is None
    failpoints.disarm()
    with pytest.raises(StorageFailed, match="not known") as caught:
        append(store, uid, 1)
    assert caught.value.applied is None


def test_a_full_disk_refuses_blocks_and_snapshots_until_there_is_room(small_disk: Path) -> None:
    filler = small_disk / "filler"
    store = DiskStore(small_disk / "data")
    uid = create(store)
    start = append(store, uid, 1)
    filler.write_bytes(bytes(600_000))
    with pytest.raises(StorageFull, match="disk is full"):
        append(store, uid, 2, size=200_000)
    with pytest.raises(StorageFull, match="disk is full"):
        store.write(uid, snapshot(1, size=200_000))
    assert store.position(uid) == start
    filler.unlink()
    append(store, uid, 2)
    save(store, uid, 2)
    store.close()
    store = DiskStore(small_disk / "data")
    assert steps_after(store, uid, start) == [2]
    assert [path.suffix for path in (small_disk / "data" / "snapshots").iterdir()] == [".safetensors"] * 2
    assert store.losses() == []
    store.close()


def test_what_a_killed_server_was_writing_is_cleared_away(store: DiskStore) -> None:
    uid = create(store)
    store.write(uid, snapshot(3))  # written, but nothing refers to it
    (store.directory / "snapshots" / "half.safetensors.tmp").write_bytes(b"half")
    copy = DiskStore(killed(store.directory, store.directory.with_name("copy")))
    assert len(list((copy.directory / "snapshots").iterdir())) == 1
    copy.close()


def test_a_long_journal_is_pruned_and_its_room_used_again(store: DiskStore) -> None:
    uid = create(store)
    for first in range(1, 1001, 200):
        futures = [append(store, uid, step, size=1000) for step in range(first, first + 200)]
        assert futures[-1].number == first + 199
        save(store, uid, first + 199)
    store.close()
    again = DiskStore(store.directory)
    newest, older = again.snapshots(uid)[:2]
    assert (newest.step, older.step) == (1000, 800)
    assert steps_after(again, uid, again.load(uid, older.id).position) == list(range(801, 1001))
    assert (store.directory / "journal.sqlite3").stat().st_size < 1000 * 4000
    again.close()


def test_snapshots_are_plain_safetensors_files(store: DiskStore) -> None:
    from safetensors.numpy import load_file

    uid = create(store, step=3)
    (path,) = (store.directory / "snapshots").iterdir()
    assert uid in path.name
    tensors = load_file(path)
    expected = snapshot(3).vectors
    assert {name: value.tolist() for name, value in tensors.items()} == {
        name: vector.array().tolist() for name, vector in expected.items()
    }


@pytest.mark.parametrize("how", ["deleted", "moved", "log deleted", "snapshots deleted", "another in its place"])
def test_nothing_is_acknowledged_that_the_next_start_would_not_find(store: DiskStore, how: str) -> None:
    """SQLite writes on, into files that have no name any more; whoever is told would have lost it at the next start."""
    uid = create(store)
    append(store, uid, 1)
    database = store.directory / "journal.sqlite3"
    kept = store.directory.with_name("kept")
    if how == "deleted":
        shutil.rmtree(store.directory)
    elif how == "log deleted":
        database.with_name(f"{database.name}-wal").unlink()
    elif how == "snapshots deleted":
        shutil.rmtree(store.directory / "snapshots")
    else:
        store.directory.rename(kept)
        if how == "another in its place":
            shutil.copytree(kept, store.directory)
    with pytest.raises(StorageFailed, match=r"(journal\.sqlite3|snapshots).*nothing was applied") as caught:
        append(store, uid, 2)
    assert caught.value.applied is False
    if how == "moved":
        kept.rename(store.directory)
        append(store, uid, 2)  # it is there again


def test_files_that_go_while_they_are_flushed_are_noticed_before_anybody_is_told(store: DiskStore) -> None:
    uid = create(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "gradwire.server.store.writer.failpoint",
            lambda name: shutil.rmtree(store.directory) if name == "journal.commit" else None,
        )
        with pytest.raises(StorageFailed, match="whether this was kept is not known"):
            append(store, uid, 1)


@pytest.mark.parametrize("name", ["snapshots", "journal.sqlite3", "acknowledged", "lock"])
def test_something_else_in_the_place_of_a_file_is_an_error(tmp_path: Path, name: str) -> None:
    if name == "snapshots":
        (tmp_path / name).touch()
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(StoreError, match=str(tmp_path)):
        DiskStore(tmp_path)


def test_snapshots_that_cannot_be_listed_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    DiskStore(tmp_path).close()

    def denied(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(StoreError, match=f"cannot read {tmp_path}/snapshots: Permission denied"):
        DiskStore(tmp_path)
    monkeypatch.undo()
    DiskStore(tmp_path).close()  # nothing is held by the one that failed
