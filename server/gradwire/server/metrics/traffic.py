"""Bytes of values, by the way they take. Descriptions, headers and what gRPC adds are not counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

STREAM, LANE, SHARED, CALL = "stream", "lane", "shared_memory", "call"
"""In messages of a Train stream, by gRPC or by a lane; in memory that is shared with the client; in the messages of any
other call."""

RECEIVED, SENT = "received", "sent"

Way = tuple[str, str, str]
"""Direction, encoding and path."""

_LOCK = threading.Lock()
"""Held while streams begin, end and are added up, so that none is counted twice or not at all; never by a step."""


class ByteCount:
    """Bytes that went one way."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class StreamBytes(NamedTuple):
    """Of one stream."""

    received: ByteCount
    received_lane: ByteCount
    received_shared: ByteCount
    sent: ByteCount
    sent_lane: ByteCount
    sent_shared: ByteCount

    @property
    def by_lane(self) -> StreamBytes:
        """Once its messages go by a lane."""
        return self._replace(received=self.received_lane, sent=self.sent_lane)


def stream_bytes() -> StreamBytes:
    """Of a stream by which nothing has come yet."""
    return StreamBytes(*(ByteCount() for _ in StreamBytes._fields))


class StreamTotals:
    """Of the streams of one run, or of all: those that are open, and those that have been. Any thread may ask.

    A step counts once, in its stream; totals are made of that when somebody looks.
    """

    __slots__ = ("_ended", "_open")

    def __init__(self) -> None:
        self._ended: Counter[Way] = Counter()
        self._open: dict[int, tuple[tuple[Way, ...], StreamBytes]] = {}

    def _begin(self, ways: tuple[Way, ...], stream: StreamBytes) -> None:
        self._open[id(stream)] = ways, stream

    def _end(self, stream: StreamBytes) -> None:
        ways, _ = self._open.pop(id(stream))
        _add(self._ended, ways, stream)

    def counts(self) -> Counter[Way]:
        """Bytes by direction, encoding and path, of all ways that streams could have taken."""
        with _LOCK:
            found, streams = self._ended.copy(), list(self._open.values())
        for ways, stream in streams:
            _add(found, ways, stream)
        return found


def _add(counts: Counter[Way], ways: tuple[Way, ...], stream: StreamBytes) -> None:
    for way, count in zip(ways, stream, strict=True):
        counts[way] += count.bytes


class Traffic:
    """Of one server."""

    def __init__(self) -> None:
        self.uploads = ByteCount()
        """Whole messages: what of them is values depends on the call."""
        self.downloads = ByteCount()
        self._streams = StreamTotals()

    @contextmanager
    def stream(self, gradients: str, parameters: str, run: StreamTotals) -> Iterator[StreamBytes]:
        """For a stream with these encodings, by name, as long as it is open; ``run``: whose stream it is."""
        encodings = {RECEIVED: gradients, SENT: parameters}
        ways = tuple((way, name, path) for way, name in encodings.items() for path in (STREAM, LANE, SHARED))
        stream = stream_bytes()
        totals = (self._streams, run)
        with _LOCK:
            for each in totals:
                each._begin(ways, stream)
        try:
            yield stream
        finally:
            with _LOCK:
                for each in totals:
                    each._end(stream)

    def counts(self) -> dict[Way, int]:
        """Bytes by direction, encoding and path. Of very many streams it takes milliseconds: not on the event loop."""
        calls = {(RECEIVED, "message", CALL): self.uploads.bytes, (SENT, "message", CALL): self.downloads.bytes}
        return calls | self._streams.counts()
