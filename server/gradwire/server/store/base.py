"""The interface of a store, and what is stored, as plain data. ``tests/server/store`` has the conformance suite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire.server.metrics.histogram import Histogram

PIECE_BYTES = 4 * 2**20
"""Vectors are read and written in pieces of about this size."""

MAX_ENTRY_BYTES = 768 * 2**20
"""Gradients of one block in a journal; SQLite takes no value of 1 GB."""


_ROW_BYTES = 200
"""Of a journal's row besides its texts and its gradients: keys, hashes, what the database adds."""


EMPTY = "{}"
"""A JSON object that says nothing."""


class StoreError(Exception):
    """Raised when a store cannot be opened; the message names the file and says what can be done."""


class SnapshotDamaged(Exception):
    """Raised when a snapshot is not, bit for bit, what was written."""


class JournalBroken(Exception):
    """Raised when the journal of a run goes on, but not with the row that was written. What came before it is good."""


class Position(NamedTuple):
    """A place in a run's history: how many blocks and barriers there are before it, and the hash of all of them."""

    number: int
    chain: bytes


@dataclass(frozen=True)
class StoredRun:
    """A run without its values."""

    uid: str
    name: str
    spec: str
    """JSON; the store does not look inside."""
    request_id: str
    epoch: int = 0
    extra: str = EMPTY
    """JSON of what else is known of it; the store does not look inside."""


@dataclass(frozen=True)
class Entry:
    """One applied block: the update and the mark that it has been applied, in one record."""

    worker_id: str
    sequence: int
    step: int
    """The run's step after the block."""
    block: str
    """JSON of the header and the receipt; the store does not look inside."""
    gradients: bytes | memoryview
    """The gradients of the present elements as they were staged, ``[K, present]``, in the run's dtype."""
    fingerprint: str
    """Of the kernels that have applied it."""

    @property
    def size_bytes(self) -> int:
        """What it takes of a journal, about."""
        return len(self.gradients) + len(self.block) + _ROW_BYTES


@dataclass(frozen=True)
class Vector:
    """Values on their way into or out of a store."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[npt.NDArray[Any]]]
    """Makes an iterator over all elements, in order, as one-dimensional arrays."""

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Vector:
        """The values of an array that nobody changes any more."""
        flat = array.reshape(-1)
        step = max(1, PIECE_BYTES // flat.itemsize)
        return cls(flat.dtype, array.shape, lambda: (flat[i : i + step] for i in range(0, flat.size, step)))

    def array(self) -> npt.NDArray[Any]:
        """All of it."""
        out = np.empty(int(np.prod(self.shape, dtype=np.int64)), self.dtype)
        at = 0
        for piece in self.pieces():
            out[at : at + piece.size] = piece
            at += piece.size
        return out.reshape(self.shape)


@dataclass(frozen=True)
class Snapshot:
    """A whole run at one step."""

    step: int
    position: Position
    """What the snapshot includes of the journal."""
    fingerprint: str
    meta: str
    """JSON of everything that is no vector; the store does not look inside."""
    vectors: Mapping[str, Vector]


@dataclass(frozen=True)
class SnapshotInfo:
    """A snapshot as it is listed."""

    id: int
    """Counts from 1 through the run's own, and is never given to two of a run: what one run does shows in no other."""
    step: int
    number: int
    """Its place in the run's history: the newest snapshot has the highest, and of those the highest id."""
    created: float
    """Seconds since 1970."""
    size_bytes: int
    sha256: str
    label: str
    """What the user has called it; empty: the server made it by itself, and will drop it for newer ones."""
    extra: str = EMPTY
    """JSON of what else is known of it; the store does not look inside."""


@dataclass(frozen=True)
class Written:
    """A snapshot whose values are safe, but which nothing refers to yet: `Store.record` or `Store.create` does."""

    name: str
    size_bytes: int
    sha256: str
    snapshot: Snapshot


@dataclass(frozen=True)
class Acknowledged:
    """The last block of a run that is known to have been acknowledged."""

    number: int
    step: int


class Store(ABC):
    """Keeps runs. Methods may be called from any thread.

    A future is done when its change is safe: it outlives the process, and for a store on disk the machine. It fails
    with StorageFull or StorageFailed, and then nothing has changed, unless the exception's ``applied`` is None.
    """

    durable: bool
    """Whether anything outlives the process."""

    scratch: str | None
    """A directory for files that are of no use after the process; None: the system's own."""

    @property
    def flush_seconds(self) -> Histogram | None:
        """How long transactions took from their commit until they were on disk; None: there is no disk."""
        return None

    @abstractmethod
    def runs(self) -> list[StoredRun]:
        """All runs, by name."""

    @abstractmethod
    def damaged(self) -> list[tuple[StoredRun, str]]:
        """Runs whose very description is damaged, as far as it can be read, and why. They can be deleted, replaced."""

    @abstractmethod
    def losses(self) -> list[str]:
        """What the store found missing when it was opened, in words."""

    @abstractmethod
    def write(self, uid: str, snapshot: Snapshot) -> Written:
        """Puts the values of a snapshot where they are safe; blocks. Raises StorageFull, StorageFailed."""

    @abstractmethod
    def discard(self, written: Written) -> None:
        """Drops what `write` has made and nothing refers to."""

    @abstractmethod
    def create(self, run: StoredRun, first: Written, replaces: str = "", label: str = "") -> Future[SnapshotInfo]:
        """Keeps a run from now on, in the place of the run with the uid ``replaces``; ``label``: as in `record`."""

    @abstractmethod
    def delete(self, uid: str) -> Future[None]:
        """Forgets a run and all that belongs to it."""

    @abstractmethod
    def append(self, uid: str, entry: Entry) -> Future[Position]:
        """Adds a block to the run's journal. One at a time for each run."""

    @abstractmethod
    def position(self, uid: str) -> Position:
        """The end of the run's journal."""

    @abstractmethod
    def raise_epoch(self, uid: str, epoch: int) -> Future[None]:
        """The run's epoch is at least ``epoch`` from now on."""

    @abstractmethod
    def note_extra(self, uid: str, extra: str) -> Future[None]:
        """Replaces `StoredRun.extra`, a JSON object."""

    @abstractmethod
    def record(self, uid: str, written: Written, *, barrier: bool = False, label: str = "") -> Future[SnapshotInfo]:
        """Makes a written snapshot one of the run's, mostly the newest, and drops what is not needed any more: older
        snapshots beyond those that are kept, and the journal before the second newest.

        Args:
            barrier: its values do not follow from the journal (somebody wrote them): nothing journaled after it may
                ever be applied to an older snapshot. It takes a place in the run's history, as a block does, and
                nothing may be appended until the future is done.
            label: keep it until the run is deleted, under this name.
        """

    @abstractmethod
    def snapshots(self, uid: str) -> list[SnapshotInfo]:
        """All snapshots of a run, the newest first."""

    @abstractmethod
    def load(self, uid: str, snapshot_id: int) -> Snapshot:
        """A snapshot, verified; blocks. Raises SnapshotDamaged, KeyError where there is none."""

    @abstractmethod
    def entries(self, uid: str, after: Position) -> Iterator[tuple[Position, Entry]]:
        """The run's journal from a position on, verified row by row; blocks. Raises JournalBroken at damage."""

    @abstractmethod
    def acknowledged(self, uid: str) -> Acknowledged | None:
        """What the run had acknowledged when the store was opened; None: not known."""

    @abstractmethod
    def note_step(self, uid: str, step: int) -> None:
        """Notes, without any promise, that a run without a journal has acknowledged ``step``: it can be said then,
        after a crash, what was lost."""

    @abstractmethod
    def cut(self, uid: str, snapshot_id: int, position: Position, step: int) -> None:
        """The run goes on from here: forgets snapshots newer than ``snapshot_id`` and the journal after ``position``;
        blocks."""

    @abstractmethod
    def close(self) -> None:
        """Finishes what has been asked for, and gives the store back."""
