"""How far a long transfer is, in the log of whoever waits for it."""

from __future__ import annotations

import logging
import time

from gradwire.wire.printable import printable
from gradwire.wire.sizes import amount

log = logging.getLogger(__name__)

TELL_SECONDS = 5.0
"""One that takes no longer is not spoken of."""


class ProgressLog:
    """Of one transfer, at one attempt.

    Args:
        what: is on its way, and where to.
        total_bytes: 0: not known.
    """

    def __init__(self, what: str, total_bytes: int) -> None:
        self._what = what
        self._total_bytes = total_bytes
        self._bytes = 0
        self._said_at = time.monotonic()

    def add(self, size_bytes: int) -> None:
        """So many more have been handed over."""
        self._bytes += size_bytes
        now = time.monotonic()
        if now - self._said_at >= TELL_SECONDS:
            self._said_at = now
            log.info("%s: %s", printable(self._what), amount(self._bytes, max(self._bytes, self._total_bytes)))
