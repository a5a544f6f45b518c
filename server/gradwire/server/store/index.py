"""What the database says of runs and snapshots, in memory: read once, and kept up to date after each transaction."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from gradwire.server.store import journal
from gradwire.server.store.base import Position, SnapshotInfo, StoredRun
from gradwire.server.store.marks import COMMITS, Marks
from gradwire.server.store.schema import check
from gradwire.server.store.snapshots import SUFFIX, UNFINISHED

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredSnapshot:
    """A snapshot and where it is."""

    row: int
    info: SnapshotInfo
    file: str
    chain: bytes

    @property
    def age(self) -> tuple[int, int]:
        """Sorts snapshots, the oldest first. One that was copied before a barrier may be recorded after it."""
        return self.info.number, self.info.id


@dataclass(frozen=True)
class Head:
    """The newest thing that is known of a run."""

    position: Position
    step: int


class Index:
    """Reads the database; changes nothing there. Raises sqlite3.Error.

    Args:
        files: the directory of the snapshots. Those that nobody has been told of are removed.
    """

    def __init__(self, database: sqlite3.Connection, marks: Marks, files: Path) -> None:
        self._marks = marks
        self._files = files
        self.numbers: dict[str, int] = {}
        """Of runs, by uid."""
        self.runs: dict[str, StoredRun] = {}
        self.kept: dict[str, list[StoredSnapshot]] = {}
        """The snapshots of each run, the oldest first."""
        self.next_snapshot: dict[str, int] = {}
        """The id that each run's next snapshot gets."""
        self.heads: dict[str, Head] = {}
        self.damaged: list[tuple[StoredRun, str]] = []
        self.losses: list[str] = []
        uids: dict[int, str] = {}
        check(database)
        for number, run, next_snapshot, good in journal.read_runs(database):
            uids[number] = run.uid
            self.numbers[run.uid] = number
            self.kept[run.uid] = []
            self.next_snapshot[run.uid] = next_snapshot
            if good:
                self.runs[run.uid] = run
            else:
                self.damaged.append((run, "its description in the journal is damaged"))
        for row, number, file, chain, info in journal.read_snapshots(database):
            if number in uids:
                uid = uids[number]
                self.kept[uid].append(StoredSnapshot(row, info, file, chain))
                # A server that knows no numbers may have been here, and has left rows that have their own.
                self.next_snapshot[uid] = max(self.next_snapshot[uid], info.id + 1)
        for snapshots in self.kept.values():
            snapshots.sort(key=lambda kept: kept.age)
        self.acknowledged = {uid: marks.read(number, uid) for number, uid in uids.items()}
        self.commits: int = database.execute("SELECT count FROM commits").fetchone()[0]
        self._find_losses(set(uids))
        self._clear_away()
        for uid in self.runs:
            newest = self.kept[uid][-1] if self.kept[uid] else None
            position = Position(newest.info.number, newest.chain) if newest else Position(0, b"")
            self.heads[uid] = Head(position, newest.info.step if newest else 0)

    def note(self, uid: str, head: Head) -> None:
        """The run has come so far, and it has been or will be said so."""
        self.heads[uid] = head
        self._marks.write(self.numbers[uid], uid, head.position.number, head.step)

    def note_commits(self, count: int) -> None:
        """So many transactions have changed anything but a journal."""
        self.commits = count
        self._marks.write(COMMITS, "", count, 0)

    def forget(self, uid: str) -> list[StoredSnapshot]:
        """The run has been deleted; returns its snapshots."""
        self.numbers.pop(uid, None)
        self.runs.pop(uid, None)
        self.heads.pop(uid, None)
        self.next_snapshot.pop(uid, None)
        self.damaged = [(run, why) for run, why in self.damaged if run.uid != uid]
        return self.kept.pop(uid, [])

    def _find_losses(self, numbers: set[int]) -> None:
        noted = self._marks.read(COMMITS) if self._marks.existed else None
        if noted is None and self.commits:
            self.losses.append(
                "the marks of what has been acknowledged are missing or damaged: if the newest part of the journal has "
                "been lost, it cannot be seen"
            )
        elif noted is not None and noted.number > self.commits:
            self.losses.append(
                f"the journal has lost its last {noted.number - self.commits} transactions, which had been acknowledged"
            )
        for number in sorted(self._marks.owned() - numbers):
            self.losses.append(f"run number {number} is missing from the journal, and nobody has deleted it")

    def _clear_away(self) -> None:
        known = {kept.file for snapshots in self.kept.values() for kept in snapshots}
        for path in self._files.iterdir():
            unfinished = path.name.endswith(UNFINISHED)
            if path.suffix in (SUFFIX, UNFINISHED) and path.name not in known:
                if unfinished or not (self.losses or self.damaged):
                    path.unlink()
                else:
                    log.warning("%s belongs to no run that is known; it stays, after what was lost", path)
