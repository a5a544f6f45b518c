"""Counts the TLS handshakes that have led to nothing.

gRPC for Python says neither that a handshake has failed nor to which connection a call belongs. But it asks for the
server's certificate before each handshake, and each call names the address of its peer: what has been begun for a while
and is followed by no call has failed, or is a connection that nobody uses.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from gradwire.wire.hosts import is_unix

log = logging.getLogger(__name__)

SETTLED_SECONDS = 15.0
"""A handshake may take ten, and a client may need a moment more for its first call."""

_LOOK_SECONDS = 1.0
_SAY_SECONDS = 60.0
_KNOWN = 65_536


class Handshakes:
    """Of one server. `begun` may be called from any thread, all else on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._young: deque[float] = deque()
        """When the handshakes were begun that may still be followed by a call."""
        self._settled = 0
        self._used = 0
        self._peers: OrderedDict[str, None] = OrderedDict()
        """Those whose call has been seen, the last one last."""
        self._unused = 0
        self._said = 0
        self._said_at = clock()

    def begun(self) -> None:
        """Somebody has begun one."""
        with self._lock:
            self._young.append(self._clock())

    def called(self, peer: str) -> None:
        """There is a call from this address."""
        if peer in self._peers:
            self._peers.move_to_end(peer)
        elif (self._young or self._settled) and not is_unix(peer):  # else there is no TLS
            self._peers[peer] = None
            with self._lock:
                self._used += bool(self._young)  # else it is one that has been counted as unused already
            if len(self._peers) > _KNOWN:
                self._peers.popitem(last=False)

    @property
    def unused(self) -> int:
        """How many have led to nothing, up to `SETTLED_SECONDS` ago. It only rises."""
        with self._lock:
            while self._young and self._young[0] <= self._clock() - SETTLED_SECONDS:
                self._young.popleft()
                self._settled += 1
        self._unused = max(self._unused, self._settled - self._used)
        return self._unused

    async def watch(self) -> None:
        """Says once a minute how many there were, if there were any, until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.say()

    def say(self) -> None:
        """Logs what has come since it was last said, unless that is less than a minute ago."""
        unused, now = self.unused, self._clock()
        if unused > self._said and now - self._said_at >= _SAY_SECONDS:
            log.warning(
                "%d TLS connections were begun and never used: their handshakes failed (plaintext, another authority, "
                "no client certificate), or nobody called",
                unused - self._said,
            )
            self._said, self._said_at = unused, now
