"""What every store does. A new store is added to `stores`, and has no further test of its own for this."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gradwire.server.store.base import JournalBroken, Snapshot, Store, Vector
from gradwire.server.store.disk import DiskStore
from gradwire.server.store.memory import MemoryStore
from gradwire.wire.errors import RunNotFound
from tests.server.store.stored import (
    WAIT_SECONDS,
    append,
    create,
    entry,
    same,
    save,
    snapshot,
    steps_after,
    stored_run,
    uid_of,
)


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens the store; a second call opens it again, after a close where it is on disk."""
    opened: list[Store] = []

    def make() -> Store:
        if request.param == "memory":
            if not opened:
                opened.append(MemoryStore(keep=2))
            return opened[0]
        if opened:
            opened[-1].close()
        opened.append(DiskStore(tmp_path / "data", keep=2))
        return opened[-1]

    yield make
    opened[-1].close()


def test_an_empty_store_holds_nothing(make: Callable[[], Store]) -> None:
    store = make()
    assert store.runs() == []
    assert store.damaged() == []
    assert store.losses() == []
    assert make().losses() == []


def test_a_run_is_kept_with_its_first_snapshot(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store, "b", step=7)
    create(store, "a")
    store = make()
    assert [run.name for run in store.runs()] == ["runs/a", "runs/b"]
    assert store.runs()[1] == stored_run("b")
    (info,) = store.snapshots(uid)
    assert (info.step, info.number, info.label) == (7, 0, "")
    assert same(store.load(uid, info.id), snapshot(7))
    assert store.load(uid, info.id).position.number == 0


def test_blocks_come_back_in_order_and_whole(make: Callable[[], Store]) -> None:
    store = make()
    uid, other = create(store, "x"), create(store, "y")
    append(store, uid, 1, 2)
    append(store, other, 1)
    position = append(store, uid, 3)
    assert position.number == 3
    assert store.position(uid) == position
    store = make()
    first = store.load(uid, store.snapshots(uid)[0].id)
    found = list(store.entries(uid, first.position))
    assert [each for _, each in found] == [entry(1), entry(2), entry(3)]
    assert found[-1][0] == position
    assert steps_after(store, other, store.load(other, store.snapshots(other)[0].id).position) == [1]


def test_a_snapshot_takes_the_place_of_the_journal_before_the_one_before_it(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store)
    start = store.position(uid)
    append(store, uid, 1, 2)
    middle = store.position(uid)
    save(store, uid, 2)
    append(store, uid, 3, 4)
    save(store, uid, 4)
    append(store, uid, 5)
    store = make()
    newest, older = store.snapshots(uid)
    assert (newest.step, newest.number, older.step, older.number) == (4, 4, 2, 2)
    assert steps_after(store, uid, store.load(uid, newest.id).position) == [5]
    assert store.load(uid, older.id).position == middle
    assert steps_after(store, uid, middle) == [3, 4, 5]
    with pytest.raises(JournalBroken, match="block 1 of the journal is missing"):
        steps_after(store, uid, start)


def test_the_last_snapshots_are_kept_and_those_with_a_label(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store)
    saved = save(store, uid, 1, label="before the change")
    ids = [save(store, uid, step) for step in (2, 3, 4)]
    store = make()
    infos = store.snapshots(uid)
    assert [info.id for info in infos] == [ids[2], ids[1], saved]
    assert infos[-1].label == "before the change"
    assert same(store.load(uid, saved), snapshot(1))
    with pytest.raises(KeyError):
        store.load(uid, ids[0])


def test_snapshots_of_each_run_are_numbered_by_themselves(make: Callable[[], Store]) -> None:
    store = make()
    ids: dict[str, list[int]] = {name: [] for name in "ab"}
    for name in "ab":
        create(store, name)
    for step in (1, 2, 3):
        for name in "ab":
            ids[name].append(save(store, uid_of(name), step, label="kept"))
        store = make()
    assert ids == {"a": [2, 3, 4], "b": [2, 3, 4]}
    assert [info.id for info in store.snapshots(uid_of("a"))] == [4, 3, 2, 1]
    create(store, "c", replaces=uid_of("b"))
    assert [info.id for info in store.snapshots(uid_of("c"))] == [1]


def test_snapshots_that_are_recorded_together_have_numbers_of_their_own(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store)
    written = [store.write(uid, snapshot(step, store.position(uid))) for step in (1, 2, 3)]
    futures = [store.record(uid, each, label="kept") for each in written]
    epoch = store.raise_epoch(uid, 5)
    assert [future.result(WAIT_SECONDS).id for future in futures] == [2, 3, 4]
    epoch.result(WAIT_SECONDS)
    store = make()
    assert store.runs()[0].epoch == 5
    assert save(store, uid, 4) == 5


def test_a_number_is_never_given_again(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store)
    here, (first,) = store.position(uid), store.snapshots(uid)
    append(store, uid, 1)
    assert save(store, uid, 1, label="cut away") == 2
    store.cut(uid, first.id, here, 0)
    store = make()
    store.raise_epoch(uid, 1).result(WAIT_SECONDS)
    store = make()
    assert save(store, uid, 0) == 3
    with pytest.raises(KeyError):
        store.load(uid, 2)


def test_what_is_journaled_after_a_barrier_is_never_applied_before_it(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store)
    start = store.position(uid)
    append(store, uid, 1)
    barrier = save(store, uid, 1, barrier=True)
    position = store.position(uid)
    assert position.number == 2
    append(store, uid, 2)
    store = make()
    assert store.load(uid, barrier).position == position
    assert steps_after(store, uid, position) == [2]
    entries = store.entries(uid, start)
    assert next(entries)[1].step == 1
    with pytest.raises(JournalBroken, match="block 2 of the journal is missing"):
        next(entries)


def test_a_snapshot_recorded_after_a_barrier_that_it_does_not_include_is_older(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store)
    late = store.write(uid, snapshot(1, append(store, uid, 1)))
    barrier = save(store, uid, 1, barrier=True)
    recorded = store.record(uid, late).result(WAIT_SECONDS).id
    store = make()
    assert [info.id for info in store.snapshots(uid)] == [barrier, recorded]
    store.cut(uid, recorded, store.load(uid, recorded).position, 1)
    assert [info.id for info in store.snapshots(uid)] == [recorded]


def test_epochs_only_rise(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store)
    for epoch in (3, 2):
        store.raise_epoch(uid, epoch).result(WAIT_SECONDS)
    assert store.runs()[0].epoch == 3
    assert make().runs()[0] == stored_run(epoch=3)


def test_what_else_is_known_of_a_run_is_replaced(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store)
    noted = [store.note_extra(uid, json.dumps({"used": used})) for used in (1.5, 2.5)]
    epoch = store.raise_epoch(uid, 3)
    for future in (*noted, epoch):
        future.result(WAIT_SECONDS)
    for again in (store, make()):
        assert again.runs()[0] == stored_run(epoch=3, extra='{"used": 2.5}')
    assert save(make(), uid, 0) == 2


def test_a_deleted_run_is_gone(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store, "x")
    create(store, "y")
    append(store, uid, 1)
    store.delete(uid).result(WAIT_SECONDS)
    openings: list[Callable[[], Store]] = [lambda: store, make]
    for again in openings:
        found = again()
        assert [run.name for run in store.runs()] == ["runs/y"]
        with pytest.raises(KeyError):
            found.snapshots(uid)
        for refused in (found.append(uid, entry(2)), found.raise_epoch(uid, 9), found.delete(uid)):
            with pytest.raises(RunNotFound):
                refused.result(WAIT_SECONDS)
    assert found.losses() == []


def test_a_run_takes_the_place_of_another_at_once(make: Callable[[], Store]) -> None:
    store = make()
    old = create(store, "x")
    append(store, old, 1)
    new = stored_run("y")
    new = type(new)(new.uid, "runs/x", new.spec, "second")
    store.create(new, store.write(new.uid, snapshot(9)), replaces=old).result(WAIT_SECONDS)
    store = make()
    assert store.runs() == [new]
    assert store.snapshots(new.uid)[0].step == 9
    assert store.losses() == []


def test_a_snapshot_that_nothing_refers_to_is_not_there(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store)
    store.write(uid, snapshot(5))
    store.discard(store.write(uid, snapshot(6)))
    store = make()
    assert [info.step for info in store.snapshots(uid)] == [0]


def test_cutting_forgets_what_came_later(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store)
    append(store, uid, 1)
    here, (info,) = store.position(uid), store.snapshots(uid)
    append(store, uid, 2, 3)
    save(store, uid, 3)
    store.cut(uid, info.id, here, 1)
    assert store.position(uid) == here
    assert append(store, uid, 20).number == 2
    store = make()
    assert store.snapshots(uid) == [info]
    assert steps_after(store, uid, store.load(uid, info.id).position) == [1, 20]


def test_vectors_of_every_shape_and_dtype(make: Callable[[], Store]) -> None:
    store = make()
    uid = create(store)
    arrays = {
        "none": np.zeros(0, np.float32),
        "flat": np.arange(3_000_000, dtype=np.float32),
        "double": np.array([1e-300, np.nan, -np.inf, -0.0]),
        "trajectory": np.arange(12, dtype=np.float64).reshape(3, 4),
        "no columns": np.zeros((3, 0), np.float32),
        "scalar": np.array(2.5, np.float32),
    }
    vectors = {name: Vector.of(array) for name, array in arrays.items()}
    written = store.write(uid, Snapshot(1, store.position(uid), "f", '{"é": "\\u0000"}', vectors))
    info = store.record(uid, written).result(WAIT_SECONDS)
    assert info.size_bytes >= 12_000_000
    store = make()
    found = store.load(uid, info.id)
    assert found.meta == '{"é": "\\u0000"}'
    for name, array in arrays.items():
        vector = found.vectors[name]
        assert (vector.dtype, vector.shape) == (array.dtype, array.shape), name
        assert vector.array().tobytes() == array.tobytes(), name


def test_uids_are_not_mixed_up(make: Callable[[], Store]) -> None:
    store = make()
    assert uid_of("a") != uid_of("b")
    create(store, "a", step=1)
    create(store, "b", step=2)
    assert [store.snapshots(uid_of(name))[0].step for name in "ab"] == [1, 2]
