"""Why there is no answer yet, in the log of whoever waits for it."""

from __future__ import annotations

import logging
from math import inf

from gradwire.v1 import train_pb2
from gradwire.wire.printable import printable

log = logging.getLogger(__name__)

QUIET_SECONDS = 10.0
"""So long nobody is told, and then once in so long."""


class WaitingLog:
    """Of one block. Goes by what the server says of how long it has waited, not by a clock."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._said_at = -inf

    def hear(self, waiting: train_pb2.Waiting) -> None:
        """Logs it where it is time."""
        since = waiting.since_seconds
        if since < self._said_at:
            self._said_at = -inf  # it waits anew: another server, or another round
        if since >= QUIET_SECONDS and since >= self._said_at + QUIET_SECONDS:
            self._said_at = since
            log.warning("%s: no answer for %.0f s: %s", self._run, since, printable(waiting.reason))
