"""The audit log: who did what to which run, one JSON object a line. Never in the way of a step."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from gradwire.server.access.identity import Identity
from gradwire.wire.errors import shorten

log = logging.getLogger(__name__)

_MAX_CHARACTERS = 300
"""Of the name of a run: who asks may send any text."""

_WAITING = 10_000
"""Lines that may wait for the disk; who knocks faster than it writes loses lines, which are counted, not memory."""


class AuditLog:
    """Written by a thread of its own. The file is opened anew when its name leads to another one: log rotation.

    Raises OSError where it cannot be written at first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _opened(path)
        self.lost = 0
        """Lines that were not written."""
        self._lines: queue.Queue[str | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._write, name="gradwire-audit", daemon=True)
        self._thread.start()

    def note(self, who: Identity | None, peer: str, action: str, resource: str, reason: str) -> None:
        """Adds a line.

        Args:
            who: None: that is not known.
            action: a method of the contract; of Train ``Attach`` and ``Detach``.
            resource: the run, by its name inside; empty: none.
            reason: of a refusal; empty: there was none.
        """
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "tenant": "" if who is None else who.tenant,
            "id": "" if who is None else who.id,
            "role": "" if who is None else who.role.name.lower(),
            "peer": peer,
            "action": action,
            "resource": shorten(resource, _MAX_CHARACTERS),
            "outcome": "refused" if reason else "ok",
            "reason": reason,
        }
        try:
            self._lines.put_nowait(json.dumps(line))
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Writes what waits. No `note` may follow."""
        self._lines.put(None)
        self._thread.join()
        self._file.close()

    def _write(self) -> None:
        failing = False
        while (line := self._lines.get()) is not None:
            try:
                self._reopen_if_moved()
                self._file.write(f"{line}\n".encode())
                failing = False
            except (OSError, ValueError) as error:
                if not failing:
                    log.error("the audit log %s cannot be written: %s", self._path, error)
                failing = True
                self.lost += 1

    def _reopen_if_moved(self) -> None:
        ours = os.fstat(self._file.fileno())
        try:
            there = self._path.stat()
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except FileNotFoundError:
            pass
        renewed = _opened(self._path)
        self._file.close()
        self._file = renewed


def _opened(path: Path) -> FileIO:
    def private(name: str, flags: int) -> int:
        return os.open(name, flags, 0o640)

    return open(path, "ab", buffering=0, opener=private)  # what cannot be written is kept in no buffer
