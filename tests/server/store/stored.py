"""Small runs as a store sees them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.store.base import Entry, Position, Snapshot, Store, StoredRun, Vector
from gradwire.server.store.disk import DiskStore

WAIT_SECONDS = 30.0
FINGERPRINT = "0123456789abcdef"


def uid_of(name: str) -> str:
    return name.encode().hex().ljust(32, "0")


def stored_run(name: str = "x", **fields: Any) -> StoredRun:
    return StoredRun(uid_of(name), f"runs/{name}", '{"spec": 1}', "request", **fields)


def values(seed: int, size: int = 5) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def snapshot(step: int, position: Position = Position(0, b""), size: int = 5, meta: str = "{}") -> Snapshot:  # noqa: B008
    """Parameters that follow from the step alone, and one slot."""
    vectors = {"params": Vector.of(values(step, size)), "exp_avg": Vector.of(values(step + 1000, size))}
    return Snapshot(step, position, FINGERPRINT, meta, vectors)


def entry(step: int, worker_id: str = "w", fingerprint: str = FINGERPRINT, size: int = 5) -> Entry:
    return Entry(worker_id, step, step, f'{{"step": {step}}}', values(step, size).tobytes(), fingerprint)


def create(store: Store, name: str = "x", step: int = 0, replaces: str = "") -> str:
    """Keeps a run from ``step`` on; returns its uid."""
    run = stored_run(name)
    written = store.write(run.uid, snapshot(step))
    store.create(run, written, replaces).result(WAIT_SECONDS)
    return run.uid


def append(store: Store, uid: str, *steps: int, **fields: Any) -> Position:
    for step in steps:
        position = store.append(uid, entry(step, **fields)).result(WAIT_SECONDS)
    return position


def save(store: Store, uid: str, step: int, **options: Any) -> int:
    """Records a snapshot of now; returns its id."""
    written = store.write(uid, snapshot(step, store.position(uid)))
    return store.record(uid, written, **options).result(WAIT_SECONDS).id


def steps_after(store: Store, uid: str, position: Position) -> list[int]:
    return [entry.step for _, entry in store.entries(uid, position)]


def same(left: Snapshot, right: Snapshot) -> bool:
    return (left.step, left.fingerprint, left.meta, set(left.vectors)) == (
        right.step,
        right.fingerprint,
        right.meta,
        set(right.vectors),
    ) and all(np.array_equal(left.vectors[name].array(), right.vectors[name].array()) for name in left.vectors)


def killed(directory: Path, copy: Path) -> Path:
    """What a server killed now would leave of ``directory``, as a directory of its own: the page cache survives."""
    shutil.copytree(directory, copy, dirs_exist_ok=False)
    return copy


def reopened(directory: Path, **options: Any) -> DiskStore:
    return DiskStore(directory, **options)
