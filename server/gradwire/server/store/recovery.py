"""From what is stored to a run: the newest good snapshot, and the journal after it applied once more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gradwire.server.store.base import Entry, JournalBroken, Position, Snapshot, SnapshotDamaged, Store
from gradwire.wire.errors import GradwireError

T = TypeVar("T")


class Unrecoverable(Exception):
    """Raised when a run cannot be brought back as it was acknowledged, nor as it was at an earlier step; says why."""


@dataclass(frozen=True)
class Recovered(Generic[T]):
    """A run that can go on."""

    run: T
    step: int
    replayed: int
    """Blocks of the journal that were applied once more."""
    notes: tuple[str, ...]
    """What was found damaged, whether or not something was lost by it."""
    loss: str
    """What had been acknowledged and is gone, in words; empty: nothing that is known of."""


def recover(
    store: Store,
    uid: str,
    fingerprint: str,
    begin: Callable[[Snapshot], T],
    replay: Callable[[T, Entry], int],
) -> Recovered[T]:
    """Brings a run back; blocks.

    Args:
        fingerprint: of the kernels that would apply the journal.
        begin: makes the run of a snapshot.
        replay: applies a block and returns the run's step after it; raises Unrecoverable when it ends otherwise.

    Raises Unrecoverable; then nothing has been changed on disk.
    """
    infos = store.snapshots(uid)
    notes: list[str] = []
    for info in infos:
        try:
            snapshot = store.load(uid, info.id)
            run = begin(snapshot)
        except SnapshotDamaged as error:
            notes.append(f"the snapshot of step {info.step} is damaged ({error})")
            continue
        break
    else:
        raise Unrecoverable("; ".join(notes) or "it has no snapshot")
    position, step, replayed = snapshot.position, snapshot.step, 0
    try:
        for position_after, entry in store.entries(uid, snapshot.position):
            if entry.fingerprint != fingerprint:
                raise Unrecoverable(
                    f"its journal after step {step} was written by another build ({entry.fingerprint}; this is "
                    f"{fingerprint}), which might compute other bits. Start that build once and stop it with SIGTERM: "
                    "it leaves a snapshot that this one goes on from"
                )
            step = replay(run, entry)
            position = position_after
            replayed += 1
    except JournalBroken as error:
        notes.append(f"after step {step} {error}")
    except GradwireError as error:
        raise Unrecoverable(f"the journal cannot be read: {error}") from error
    loss = _loss(store, uid, position, step, notes, max(info.number for info in infos))
    try:
        store.cut(uid, info.id, position, step)
    except GradwireError as error:
        raise Unrecoverable(f"the journal cannot be written to: {error}") from error
    return Recovered(run, step, replayed, tuple(notes), loss)


def _loss(store: Store, uid: str, position: Position, step: int, notes: list[str], newest: int) -> str:
    known = store.acknowledged(uid)
    reasons = "; ".join(notes)
    broken = any(note.startswith("after step") for note in notes)
    # A mark may be older than what is there. Then its step says nothing: the run may have been put back since.
    if known is not None and (known.number, known.step) > (position.number, step):
        why = reasons or "the store does not have them"
        what = f"steps {step + 1} to {known.step}" if known.step > step else "values that had been written"
        return f"{what} are lost: {why}"
    if broken or newest > position.number:
        return f"what came after step {step} is lost: {reasons}"
    return ""
