"""What becomes of a store on disk whose files were changed behind its back: whole, earlier and said so, or refused."""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest

from gradwire.server.store.base import Entry, Snapshot, StoreError
from gradwire.server.store.disk import DiskStore
from gradwire.server.store.recovery import Recovered, Unrecoverable, recover
from tests.server.store.stored import FINGERPRINT, append, create, entry, killed, same, save, snapshot, uid_of

STRIDE = int(os.environ.get("GRADWIRE_TEST_STRIDE", "197"))
"""Every how many bytes of a file the tests below change one; 1 takes some minutes."""


@dataclass
class Model:
    """A run that remembers what it was made of, and complains about anything that was never written."""

    steps: list[int]


def begin(found: Snapshot) -> Model:
    assert same(found, snapshot(found.step)), "a snapshot that is another than was written passed for good"
    return Model(list(range(1, found.step + 1)))


def replay(model: Model, found: Entry) -> int:
    assert found == entry(found.step), "a block that is another than was written passed for good"
    model.steps.append(found.step)
    return found.step


def recovered(directory: Path, name: str = "x") -> Recovered[Model]:
    """Raises StoreError or Unrecoverable."""
    store = DiskStore(directory)
    try:
        uid = uid_of(name)
        for run, why in store.damaged():
            if run.uid == uid:
                raise Unrecoverable(why)
        if uid not in {run.uid for run in store.runs()}:
            if not store.losses():
                raise AssertionError("the run is missing, and nothing is said")
            raise Unrecoverable("; ".join(store.losses()))
        outcome = recover(store, uid, FINGERPRINT, begin, replay)
        again = store.position(uid)
    finally:
        store.close()
    store = DiskStore(directory)
    try:
        second = recover(store, uid, FINGERPRINT, begin, replay)
        assert (second.step, store.position(uid)) == (outcome.step, again), "recovery does not last"
    finally:
        store.close()
    return outcome


def check(directory: Path, steps: int) -> str:
    """One of the three defined outcomes, in a word. Fails for any other."""
    try:
        outcome = recovered(directory)
    except (StoreError, Unrecoverable):
        return "refused"
    assert outcome.run.steps == list(range(1, outcome.step + 1))
    if outcome.step == steps:
        return "whole"
    assert outcome.step < steps
    assert outcome.loss, f"steps after {outcome.step} are gone, and nothing is said"
    return "earlier"


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What a killed server leaves: two snapshots, the newest at step 4, and blocks to step 7."""
    store = DiskStore(tmp_path / "live")
    uid = create(store)
    append(store, uid, 1, 2, 3, 4)
    save(store, uid, 4)
    append(store, uid, 5, 6, 7)
    copy = killed(tmp_path / "live", tmp_path / "left")
    store.close()
    return copy


@pytest.fixture
def closed(left: Path) -> Path:
    """The same after an orderly end: everything is in the database itself."""
    store = DiskStore(left)
    recover(store, uid_of("x"), FINGERPRINT, begin, replay)
    store.close()
    return left


def test_undamaged_it_is_whole(left: Path) -> None:
    assert (left / "journal.sqlite3-wal").stat().st_size > 0
    outcome = recovered(left)
    assert (outcome.step, outcome.replayed, outcome.notes, outcome.loss) == (7, 3, (), "")


def last_transaction(wal: bytes, page_bytes: int = 8192) -> int:
    """Where the last transaction of a log begins: after the last but one frame that ends a transaction."""
    frame = 24 + page_bytes
    ends = [at for at in range(32, len(wal) - frame + 1, frame) if any(wal[at + 4 : at + 8])]
    return ends[-2] + frame


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_a_damaged_end_of_the_log_is_noticed(left: Path, tmp_path: Path, how: str) -> None:
    """SQLite drops it in silence; the marks tell."""
    wal = (left / "journal.sqlite3-wal").read_bytes()
    outcomes: dict[str, int] = {}
    for at in range(last_transaction(wal), len(wal), STRIDE):
        copy = killed(left, tmp_path / "copy")
        changed = wal[:at] if how == "truncate" else wal[:at] + bytes([wal[at] ^ 0x10]) + wal[at + 1 :]
        (copy / "journal.sqlite3-wal").write_bytes(changed)
        outcome = check(copy, 7)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        shutil.rmtree(copy)
    assert set(outcomes) == {"earlier"}, outcomes


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_a_damaged_database_is_noticed(closed: Path, tmp_path: Path, how: str) -> None:
    database = (closed / "journal.sqlite3").read_bytes()
    outcomes: dict[str, int] = {}
    for at in range(0, len(database), STRIDE):
        copy = killed(closed, tmp_path / "copy")
        changed = database[:at] if how == "truncate" else database[:at] + bytes([database[at] ^ 1]) + database[at + 1 :]
        (copy / "journal.sqlite3").write_bytes(changed)
        outcome = check(copy, 7)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        shutil.rmtree(copy)
    assert outcomes.get("refused", 0) > 0, outcomes


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_a_damaged_newest_snapshot_is_replaced_by_the_one_before_and_the_journal(
    left: Path, tmp_path: Path, how: str
) -> None:
    newest = next(path for path in (left / "snapshots").iterdir() if "-4-" in path.name)
    good = newest.read_bytes()
    for at in range(0, len(good), max(1, STRIDE // 8)):
        copy = killed(left, tmp_path / "copy")
        changed = good[:at] if how == "truncate" else good[:at] + bytes([good[at] ^ 0x80]) + good[at + 1 :]
        (copy / "snapshots" / newest.name).write_bytes(changed)
        outcome = recovered(copy)
        assert (outcome.step, outcome.loss) == (7, "")
        assert "the snapshot of step 4 is damaged" in outcome.notes[0]
        assert not (copy / "snapshots" / newest.name).exists()
        shutil.rmtree(copy)


def test_without_any_good_snapshot_a_run_is_refused(left: Path) -> None:
    for path in (left / "snapshots").iterdir():
        path.unlink()
    with pytest.raises(Unrecoverable, match=r"step 4 is damaged .* step 0 is damaged"):
        recovered(left)


def alter(directory: Path, statement: str) -> None:
    """Changes the database as no server would."""
    database = sqlite3.connect(directory / "journal.sqlite3")
    database.execute("PRAGMA locking_mode=EXCLUSIVE")
    assert database.execute(statement).rowcount > 0
    database.commit()
    database.close()


@pytest.mark.parametrize(
    ("change", "step", "said"),
    [
        ("UPDATE journal SET gradients = zeroblob(20) WHERE step = 6", 5, "block 6 of the journal is not what was"),
        ("UPDATE journal SET sequence = 9 WHERE step = 6", 5, "block 6 of the journal is not what was"),
        ("UPDATE journal SET worker = 'v' WHERE step = 6", 5, "block 6 of the journal is not what was"),
        ("UPDATE journal SET block = block || ' ' WHERE step = 6", 5, "block 6 of the journal is not what was"),
        ("UPDATE journal SET step = 8 WHERE step = 6", 5, "block 6 of the journal is not what was"),
        ("UPDATE journal SET chain = 'text' WHERE step = 6", 5, "cannot be read after block 5"),
        ("DELETE FROM journal WHERE step = 6", 5, "block 6 of the journal is missing"),
        ("DELETE FROM journal WHERE step = 7", 6, "the store does not have them"),
        ("UPDATE journal SET key = key + 10 WHERE step = 6", 5, "block 6 of the journal is missing"),
    ],
)
def test_a_changed_row_ends_recovery_before_it(closed: Path, change: str, step: int, said: str) -> None:
    alter(closed, change)
    outcome = recovered(closed)
    assert outcome.step == step
    assert f"steps {step + 1} to 7 are lost" in outcome.loss
    assert said in outcome.loss


def test_a_run_whose_description_was_changed_is_refused_and_can_be_replaced(closed: Path) -> None:
    alter(closed, "UPDATE runs SET spec = replace(spec, '1', '2')")
    store = DiskStore(closed)
    assert store.runs() == []
    ((run, why),) = store.damaged()
    assert (run.name, why) == ("runs/x", "its description in the journal is damaged")
    create(store, "y")
    store.delete(run.uid).result(10)
    assert store.damaged() == []
    create(store, "x")
    store.close()
    store = DiskStore(closed)
    assert [run.name for run in store.runs()] == ["runs/x", "runs/y"]
    assert (store.damaged(), store.losses()) == ([], [])
    store.close()


def test_a_run_that_has_vanished_is_missed(closed: Path) -> None:
    alter(closed, "DELETE FROM runs")
    store = DiskStore(closed)
    assert store.losses() == ["run number 1 is missing from the journal, and nobody has deleted it"]
    assert len(list((closed / "snapshots").iterdir())) == 2, "its snapshots are all that is left of it"
    store.close()


def test_a_log_that_was_taken_away_is_missed(left: Path) -> None:
    (left / "journal.sqlite3-wal").unlink()
    with pytest.raises((StoreError, Unrecoverable)):
        recovered(left)


def test_without_marks_what_is_there_is_served_and_the_doubt_is_said(left: Path) -> None:
    (left / "acknowledged").unlink()
    store = DiskStore(left)
    assert "it cannot be seen" in store.losses()[0]
    store.close()
    assert recovered(left).step == 7


def test_marks_from_before_a_run_was_put_back_say_nothing_of_it(left: Path) -> None:
    """A power cut, or a disk that was full, may leave an old mark: its step is higher, and yet nothing is missing."""
    marks = (left / "acknowledged").read_bytes()
    store = DiskStore(left)
    recover(store, uid_of("x"), FINGERPRINT, begin, replay)
    save(store, uid_of("x"), 2, barrier=True)
    store.close()
    (left / "acknowledged").write_bytes(marks)
    outcome = recovered(left)
    assert (outcome.step, outcome.loss) == (2, "")


def test_the_journal_of_another_build_is_refused_unless_it_is_empty(left: Path) -> None:
    store = DiskStore(left)
    with pytest.raises(Unrecoverable, match=r"another build .* SIGTERM"):
        recover(store, uid_of("x"), "another", begin, replay)
    recover(store, uid_of("x"), FINGERPRINT, begin, replay)
    save(store, uid_of("x"), 7)
    store.close()
    store = DiskStore(left)
    assert recover(store, uid_of("x"), "another", begin, replay).step == 7
    store.close()
