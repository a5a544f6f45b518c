"""Bytes of values, by the way they take. Descriptions, headers and what gRPC adds are not counted."""

from __future__ import annotations

from typing import NamedTuple

STREAM, LANE, SHARED, CALL = "stream", "lane", "shared_memory", "call"
"""In messages of a Train stream, by gRPC or by a lane; in memory that is shared with the client; in the messages of any
other call."""

RECEIVED, SENT = "received", "sent"


class ByteCount:
    """Bytes that went one way."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class StreamBytes(NamedTuple):
    """Of the streams that have the same encodings."""

    received: ByteCount
    received_lane: ByteCount
    received_shared: ByteCount
    sent: ByteCount
    sent_lane: ByteCount
    sent_shared: ByteCount

    @property
    def by_lane(self) -> StreamBytes:
        """Of those whose messages go by a lane."""
        return self._replace(received=self.received_lane, sent=self.sent_lane)


class Traffic:
    """Of one server."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str, str], ByteCount] = {}
        """By direction, encoding and path."""
        self.uploads = self._count(RECEIVED, "message", CALL)
        """Whole messages: what of them is values depends on the call."""
        self.downloads = self._count(SENT, "message", CALL)

    def stream(self, gradients: str, parameters: str) -> StreamBytes:
        """For a stream with these encodings, by name."""
        return StreamBytes(
            *(self._count(RECEIVED, gradients, path) for path in (STREAM, LANE, SHARED)),
            *(self._count(SENT, parameters, path) for path in (STREAM, LANE, SHARED)),
        )

    def _count(self, direction: str, encoding: str, path: str) -> ByteCount:
        return self.counts.setdefault((direction, encoding, path), ByteCount())
