"""What has happened to a run besides its steps, for those who watch it.

Kept in memory only, and only so many of them: it is no record of a run, which is its journal, and what a server has
seen is gone with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

MAX_EVENTS = 256
"""Of a run; the oldest ones go."""


class EventKind(StrEnum):
    """What it was."""

    CREATED = "created"
    RECOVERED = "recovered"
    ATTACHED = "attached"
    DETACHED = "detached"
    FENCED = "fenced"
    HYPERPARAMETERS = "hyperparameters"
    WRITTEN = "written"
    ROLLED_BACK = "rolled back"
    SNAPSHOT = "snapshot"
    SKIPPED = "skipped"
    REJECTED = "rejected"
    ROUND_DROPPED = "round dropped"


_RECURRING = frozenset(
    {
        EventKind.HYPERPARAMETERS,
        EventKind.SNAPSHOT,
        EventKind.SKIPPED,
        EventKind.REJECTED,
        EventKind.ROUND_DROPPED,
    }
)
"""What a run may do at every step. As long as nothing else happens, such events of one kind are one that is counted."""


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One event, or several of one kind in a row; then all but ``count`` and ``since`` is of the last one."""

    number: int
    """Rises by one with each; of the events of a run no two have the same."""
    kind: EventKind
    text: str
    """What happened, in words; worker ids and labels in it are as their senders wrote them."""
    step: int
    """Of the run, at that moment."""
    seconds: float
    """When, in seconds since 1970."""
    count: int = 1
    since: float = 0.0
    """When the first of them was, in seconds since 1970."""


class RunEvents:
    """The last events of one run. Any thread may call.

    Args:
        clock: says how late it is, in seconds since 1970.
    """

    __slots__ = ("_clock", "_events", "_lock", "last_number", "rewritten")

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._events: list[RunEvent] = []
        self._lock = threading.Lock()
        self.last_number = 0
        """Of the newest event; 0: there is none."""
        self.rewritten = 0
        """Of the last event after which the run's past may be another one; 0: there was none."""

    def note(self, kind: EventKind, text: str, step: int) -> None:
        """Something has happened to a run that is at ``step``."""
        now = self._clock()
        with self._lock:
            self.last_number += 1
            if kind in (EventKind.WRITTEN, EventKind.ROLLED_BACK):
                self.rewritten = self.last_number
            count, since = 1, now
            if (before := self._same(kind)) is not None:
                event = self._events.pop(before)
                count, since = event.count + 1, event.since
            self._events.append(RunEvent(self.last_number, kind, text, step, now, count, since))
            if len(self._events) > MAX_EVENTS:
                del self._events[0]

    def _same(self, kind: EventKind) -> int | None:
        """Where the event is that one of this kind adds to; None: it is one of its own."""
        if kind in _RECURRING:
            for place in range(len(self._events) - 1, -1, -1):
                if self._events[place].kind is kind:
                    return place
                if self._events[place].kind not in _RECURRING:
                    break
        return None

    def since(self, number: int = 0) -> list[RunEvent]:
        """Those that are newer than the one of this number, the oldest first."""
        with self._lock:
            return [event for event in self._events if event.number > number]
