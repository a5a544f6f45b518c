"""A store in memory: snapshots to go back to, for as long as the process lives."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from gradwire.server.store.base import (
    Acknowledged,
    Entry,
    Position,
    Snapshot,
    SnapshotInfo,
    Store,
    StoredRun,
    Vector,
    Written,
)
from gradwire.server.store.chain import barrier_link, first_link, next_link, verify
from gradwire.wire.errors import RunNotFound

T = TypeVar("T")


@dataclass(eq=False)
class _Kept:
    run: StoredRun
    position: Position
    next_snapshot: int = 1
    snapshots: list[tuple[SnapshotInfo, Snapshot]] = field(default_factory=list)
    entries: list[tuple[Position, Entry]] = field(default_factory=list)


class MemoryStore(Store):
    """Args: keep: how many snapshots of a run are kept, besides those with a label."""

    durable = False
    scratch = None

    def __init__(self, keep: int = 3) -> None:
        self._keep = keep
        self._lock = threading.RLock()
        self._runs: dict[str, _Kept] = {}

    def runs(self) -> list[StoredRun]:
        return sorted((kept.run for kept in self._runs.values()), key=lambda run: run.name)

    def damaged(self) -> list[tuple[StoredRun, str]]:
        return []

    def losses(self) -> list[str]:
        return []

    def write(self, uid: str, snapshot: Snapshot) -> Written:
        sha256 = hashlib.sha256(snapshot.meta.encode())
        vectors = {}
        for name, vector in snapshot.vectors.items():
            array = vector.array()
            sha256.update(np.ascontiguousarray(array).view(np.uint8).data)
            vectors[name] = Vector.of(array)
        size_bytes = sum(int(np.prod(v.shape, dtype=np.int64)) * v.dtype.itemsize for v in vectors.values())
        return Written(uuid.uuid4().hex, size_bytes, sha256.hexdigest(), replace(snapshot, vectors=vectors))

    def discard(self, written: Written) -> None:
        pass

    def create(self, run: StoredRun, first: Written, replaces: str = "", label: str = "") -> Future[SnapshotInfo]:
        def work() -> SnapshotInfo:
            if replaces:
                del self._runs[self._find(replaces).run.uid]
            kept = _Kept(run, Position(0, first_link(run.uid, run.spec)))
            self._runs[run.uid] = kept
            return self._add(kept, _at(first, kept.position), label)

        return self._done(work)

    def delete(self, uid: str) -> Future[None]:
        def work() -> None:
            del self._runs[self._find(uid).run.uid]

        return self._done(work)

    def append(self, uid: str, entry: Entry) -> Future[Position]:
        def work() -> Position:
            kept = self._find(uid)
            kept.position = Position(kept.position.number + 1, next_link(kept.position.chain, entry))
            kept.entries.append((kept.position, replace(entry, gradients=bytes(entry.gradients))))
            return kept.position

        return self._done(work)

    def position(self, uid: str) -> Position:
        return self._runs[uid].position

    def raise_epoch(self, uid: str, epoch: int) -> Future[None]:
        def work() -> None:
            kept = self._find(uid)
            kept.run = replace(kept.run, epoch=max(kept.run.epoch, epoch))

        return self._done(work)

    def note_extra(self, uid: str, extra: str) -> Future[None]:
        def work() -> None:
            kept = self._find(uid)
            kept.run = replace(kept.run, extra=extra)

        return self._done(work)

    def record(self, uid: str, written: Written, *, barrier: bool = False, label: str = "") -> Future[SnapshotInfo]:
        def work() -> SnapshotInfo:
            kept = self._find(uid)
            if barrier:
                kept.position = Position(kept.position.number + 1, barrier_link(kept.position.chain, written.sha256))
            new = _at(written, kept.position) if barrier else written
            info = self._add(kept, new, label)
            surplus = [info for info, _ in kept.snapshots if not info.label][: -self._keep]
            kept.snapshots = [pair for pair in kept.snapshots if pair[0] not in surplus]
            last = kept.snapshots[-2][0].number if len(kept.snapshots) > 1 else new.snapshot.position.number
            kept.entries = [pair for pair in kept.entries if pair[0].number > last]
            return info

        return self._done(work)

    def snapshots(self, uid: str) -> list[SnapshotInfo]:
        with self._lock:
            return [info for info, _ in reversed(self._runs[uid].snapshots)]

    def load(self, uid: str, snapshot_id: int) -> Snapshot:
        with self._lock:
            for info, snapshot in self._runs[uid].snapshots:
                if info.id == snapshot_id:
                    return snapshot
        raise KeyError(snapshot_id)

    def entries(self, uid: str, after: Position) -> Iterator[tuple[Position, Entry]]:
        with self._lock:
            pairs = [pair for pair in self._runs[uid].entries if pair[0].number > after.number]
        for found, entry in pairs:
            verify(after, found, entry)
            after = found
            yield found, entry

    def acknowledged(self, uid: str) -> Acknowledged | None:
        return None

    def note_step(self, uid: str, step: int) -> None:
        pass

    def cut(self, uid: str, snapshot_id: int, position: Position, step: int) -> None:
        with self._lock:
            kept = self._runs[uid]
            kept.position = position
            ids = [info.id for info, _ in kept.snapshots]
            del kept.snapshots[ids.index(snapshot_id) + 1 :]
            kept.entries = [pair for pair in kept.entries if pair[0].number <= position.number]

    def close(self) -> None:
        self._runs.clear()

    def _find(self, uid: str) -> _Kept:
        if uid not in self._runs:
            raise RunNotFound("the run has been deleted")
        return self._runs[uid]

    def _add(self, kept: _Kept, written: Written, label: str) -> SnapshotInfo:
        snapshot = written.snapshot
        info = SnapshotInfo(
            kept.next_snapshot,
            snapshot.step,
            snapshot.position.number,
            time.time(),
            written.size_bytes,
            written.sha256,
            label,
        )
        kept.next_snapshot += 1
        kept.snapshots.append((info, snapshot))
        kept.snapshots.sort(key=lambda pair: (pair[0].number, pair[0].id))
        return info

    def _done(self, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        try:
            with self._lock:
                future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        return future


def _at(written: Written, position: Position) -> Written:
    return replace(written, snapshot=replace(written.snapshot, position=position))
