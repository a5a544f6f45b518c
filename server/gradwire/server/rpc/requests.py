"""The messages that one Train stream has got, in order; some of them are read before their turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from gradwire.server.rpc.codec import decode_request
from gradwire.server.rpc.stream_guard import StreamGuard
from gradwire.v1 import train_pb2
from gradwire.wire.envelope import Opened

MAX_KEPT = 64
"""Messages that are read while room for an answer is waited for. Each of them but the last one is small."""

Request = Opened[train_pb2.TrainRequest]

UNSENT = object()
"""What a lane reads where an answer has been made that it has no room for."""


class Requests:
    """Of one stream.

    Args:
        read: the next message, as gRPC or a lane has it. May be replaced.
        unsent: waits until there is room, see `UNSENT`.
    """

    def __init__(
        self, guard: StreamGuard, read: Callable[[], Awaitable[Any]], unsent: Callable[[], Awaitable[None]]
    ) -> None:
        self.read = read
        self._guard = guard
        self._unsent = unsent
        self._kept: deque[Request | None] = deque()

    @property
    def waiting(self) -> bool:
        """Whether messages have been read before their turn."""
        return bool(self._kept)

    @property
    def may_read_ahead(self) -> bool:
        """Whether what has been read before its turn is still little, and not the end."""
        kept = self._kept
        return not kept or not (kept[-1] is None or kept[-1].data or len(kept) == MAX_KEPT)

    async def next(self) -> Request | None:
        """None: the end of the stream. Raises ProtocolViolation."""
        if self._kept:
            return self._kept.popleft()
        while (found := await self._guard.read(self.read)) is UNSENT:
            await self._unsent()
        return _opened(found)

    async def ahead(self) -> Request | None:
        """A message before its turn, for who is owed one by the peer. What is not for the caller is to be kept."""
        return _opened(await self._guard.hear(self.read))

    def keep(self, request: Request | None) -> None:
        """Until it is its turn."""
        self._kept.append(request)


def _opened(found: Any) -> Request | None:
    """None: the end of the stream. A lane may have looked into what it has read."""
    if found is grpc.aio.EOF:
        return None
    return found if isinstance(found, Opened) else decode_request(found)
