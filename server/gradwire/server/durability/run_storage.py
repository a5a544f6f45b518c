"""How one run is stored: where, what of it is safe, and when its next snapshot is due."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from gradwire.server.devices.base import State
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import TENSOR_BYTES, Durability, RunSpec
from gradwire.server.memory.budget import Reservation
from gradwire.server.store.base import Store

_PUT_OFF_SECONDS = 10.0
_GRACE_SECONDS = 3600.0

_FILE_BYTES = 4096
"""Of a snapshot's file, besides its values: a header, and what file systems round up."""
_STEPS_BYTES = 8
"""Of a tensor in a snapshot, besides its values, if it has seen less than a million steps."""

USED = "used"
"""When a run was used last, in seconds since 1970."""

ENDED = "ended_at_step"
"""The step of a shared run when its server ended in order: the newest snapshot is of then, and nothing came after."""


@dataclass(eq=False)
class RunStorage:
    """Belongs to a run from the moment that it is stored."""

    store: Store
    fingerprint: str
    """Of the kernels of this server."""
    journals: bool
    """Whether each block is journaled before it is applied."""
    saved_version: int
    """`Run.changes` in its newest snapshot."""
    saved_step: int
    due_after_steps: int
    """A snapshot is due after so many steps; 0: after none in particular."""
    due_after_bytes: int
    """A snapshot is due when so much has been journaled."""
    wake: Callable[[], None]
    """Called when a snapshot is due."""
    loss: str = ""
    """See ``gradwire.v1.Run.loss``."""
    saved_at: float = field(default_factory=time.monotonic)
    journal_bytes: int = 0
    """What has been journaled since the newest snapshot."""
    older_journal_bytes: int = 0
    """What had been journaled between the newest two: it goes when there is a newer one."""
    reserved_bytes: int = 0
    """Of the disk, for the snapshots that the server takes by itself; see `reserved_bytes`."""
    labelled_bytes: int = 0
    """Of snapshots that are kept until the run is deleted."""
    saving_bytes: int = 0
    """Of those that are being written."""

    extra: dict[str, Any] = field(default_factory=dict)
    """See `store.base.StoredRun.extra`."""
    noted_use: float = -math.inf
    """When, by the monotonic clock, the run was used as ``extra`` says."""

    room: State | None = None
    """Room for a copy of the run's values."""
    room_memory: Reservation | None = None
    put_off_until: float = 0.0
    """A snapshot has failed; before this, by the monotonic clock, none is due for other reasons than the time."""

    @property
    def disk_bytes(self) -> int:
        """What the run takes of the disk, or may any time. Room for the server's own snapshots is reserved from the
        beginning; a journal that grows beyond a quota makes them come sooner, and is never refused."""
        labelled = self.labelled_bytes + self.saving_bytes
        return self.reserved_bytes + labelled + self.journal_bytes + self.older_journal_bytes

    def note_labelled(self, uid: str) -> None:
        """Looks how much those snapshots take of the run with this uid."""
        self.labelled_bytes = sum(info.size_bytes for info in self.store.snapshots(uid) if info.label)

    def note_use(self, uid: str, used: float) -> Future[None]:
        """The run with this uid was used last at ``used``, in seconds since 1970."""
        self.extra = self.extra | {USED: used}
        return self.store.note_extra(uid, json.dumps(self.extra))

    def note_end(self, uid: str, step: int) -> Future[None]:
        """The server ends in order, and the run with this uid is saved as of ``step``."""
        return self.store.note_extra(uid, json.dumps(self.extra | {ENDED: step}))

    def due(self, step: int) -> bool:
        """Whether a snapshot is due, however recent the last one is."""
        if self.put_off_until and time.monotonic() < self.put_off_until:
            return False
        return 0 < self.due_after_steps <= step - self.saved_step or self.journal_bytes >= self.due_after_bytes

    def free_room(self) -> None:
        """Gives back the room for copies."""
        self.room = None
        if self.room_memory is not None:
            self.room_memory.release()
            self.room_memory = None

    def put_off(self) -> None:
        """Notes that a snapshot has failed."""
        self.saved_at = time.monotonic()
        self.put_off_until = self.saved_at + _PUT_OFF_SECONDS

    def saved(self, changes: int, step: int) -> None:
        """Notes that the run's newest snapshot is of now, or was a moment ago."""
        self.saved_version = changes
        self.saved_step = step
        self.saved_at = time.monotonic()
        self.older_journal_bytes, self.journal_bytes = self.journal_bytes, 0


def used_at(extra: Mapping[str, Any], ttl_seconds: float) -> float:
    """When, by the monotonic clock, a run was used last that has just come back. Whoever uses it gets an hour to come
    back too (or the time to live, where that is less), also where a clock was wrong."""
    used = extra.get(USED)
    age = max(0.0, time.time() - used) if isinstance(used, int | float) else 0.0
    return time.monotonic() - min(age, ttl_seconds - min(ttl_seconds, _GRACE_SECONDS))


def reserved_bytes(spec: RunSpec, kept: int) -> int:
    """What a run may take of the disk with its snapshots, of which ``kept`` are kept: a new one is written before an
    old one goes."""
    if spec.durability is Durability.MEMORY:
        return 0
    return (kept + 1) * snapshot_bytes(spec) + TENSOR_BYTES * len(spec.layout.names)


def snapshot_bytes(spec: RunSpec) -> int:
    """What one snapshot may take of the disk, at most but for what it remembers of workers and series."""
    return spec.state_bytes + _STEPS_BYTES * len(spec.layout.names) + _FILE_BYTES


def storage_of(run: Run) -> RunStorage | None:
    """How a run is stored; None: it is in memory only. A run itself knows of it what `engine.storage.Storage` says."""
    storage = run.storage
    assert storage is None or isinstance(storage, RunStorage)
    return storage
