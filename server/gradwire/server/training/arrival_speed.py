"""Which blocks are computed while they arrive, and which when they are whole.

Computing early hides the update, and the answer, behind the upload: on a link that is what a step takes. It goes into a
second state, which moves half as much memory again as an update in place. Where the bytes come over loopback they come
as fast as the processors carry them, and the same processors compute: there the update in place was measured to be a
fifth faster, all told, and it needs no second state.
"""

from __future__ import annotations

import time

SLOW_BYTES_PER_SECOND = 200e6
"""Loopback that is slower is none: a tunnel, or a container with a link of its own."""

_LEAST_BYTES = 4 * 2**20
"""Of a block, from which on its speed means something."""


class ArrivalSpeed:
    """How the gradients of one stream arrive.

    Args:
        local: whether the peer's address is one of this host.
    """

    def __init__(self, local: bool) -> None:
        self._local = local
        self._slow = False
        self._began = 0.0
        self._bytes = 0

    @property
    def near(self) -> bool:
        """Whether nothing is gained by computing while a block arrives."""
        return self._local and not self._slow

    def note(self, size_bytes: int, *, first: bool, last: bool) -> None:
        """Some of a block has arrived. What comes with the first message took nobody knows how long."""
        if first:
            self._began, self._bytes = time.monotonic(), 0
            return
        self._bytes += size_bytes
        if last and self._bytes >= _LEAST_BYTES:
            self._slow = self._bytes < SLOW_BYTES_PER_SECOND * (time.monotonic() - self._began)
