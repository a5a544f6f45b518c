"""When the event loop itself may wait for the disk.

The end of a flush reaches a waiting thread sooner than it reaches a coroutine: for a short block a tenth of the step.
It is worth that much only where nobody else loses by it, so it is done while one run alone is journaled (others would
share the flush), and only as long as its flushes are short.
"""

from __future__ import annotations

import math
import time

LONGEST_WAIT_SECONDS = 0.001
"""What the event loop may stand still. An update that stays on it, see `threads.BULK_ELEMENTS`, takes half of it."""

QUIET_SECONDS = 0.05
"""For so long nobody else must have journaled anything."""


class FlushWait:
    """What a server's journaled blocks know of each other."""

    def __init__(self) -> None:
        self._latest: object = None
        self._alone_since = 0.0
        self._asked_at = 0.0
        self._flush_seconds = math.inf

    def ask(self, run: object) -> float:
        """A block of ``run`` is about to be flushed. Returns how many seconds the event loop may wait for it."""
        self._asked_at = now = time.monotonic()
        if run is not self._latest:
            self._latest, self._alone_since = run, now
        quiet = now - self._alone_since >= QUIET_SECONDS
        return LONGEST_WAIT_SECONDS if quiet and self._flush_seconds <= LONGEST_WAIT_SECONDS else 0.0

    def note_flushed(self) -> None:
        """The flush that was asked for last has been heard of."""
        self._flush_seconds = time.monotonic() - self._asked_at
