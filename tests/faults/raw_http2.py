"""HTTP/2 by hand, as much as a stranger needs to say what no client of gRPC would."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from tests.faults.hosted import WAIT_SECONDS
from tests.faults.hpack import decode, encode

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = 8
"""Why a stream is reset."""
INITIAL_WINDOW_SIZE = 4
MAX_FRAME_BYTES = 16_384
_HEADER_TABLE_SIZE, _BINARY_METADATA = 1, 0xFE03
_LARGE_WINDOW = (2**30).to_bytes(4, "big")
_OUR_SETTINGS = b"".join(
    struct.pack(">HI", number, value)
    for number, value in ((_HEADER_TABLE_SIZE, 0), (INITIAL_WINDOW_SIZE, 2**30), (_BINARY_METADATA, 1))
)
"""What the server says can be read without a table, is as it is where it is binary, and has room."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVICE = "/gradwire.v1.OptimizerService/"


class RawConnection:
    """A connection whose frames are written as they are given; a context manager.

    Args:
        token: the metadata ``authorization`` of each call; empty: none.
    """

    def __init__(self, target: str, token: str = "") -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), WAIT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._token = token
        self._next_stream = 1
        self._received = b""
        self._held: bytes | None = None
        """What is to be sent together."""
        self._first_window = self._window = 65_535
        self._said: dict[int, bytes] = {}
        self._taken_bytes = 0
        self._windows: dict[int, int] = {}
        """What may still be sent on each open stream; `_window`: on all together."""
        self.send(PREFACE + frame(SETTINGS, 0, 0, _OUR_SETTINGS) + frame(WINDOW_UPDATE, 0, 0, _LARGE_WINDOW))

    def open(self, method: str, more: Sequence[tuple[str, str]] = ()) -> int:
        """Sends the headers of a call; returns its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._windows[stream] = self._first_window
        fields = [
            (":method", "POST"), (":scheme", "http"), (":path", f"{SERVICE}{method}"), (":authority", "localhost"),
            ("te", "trailers"), ("content-type", "application/grpc"), *more,
        ]  # fmt: skip
        if self._token:
            fields.append(("authorization", f"Bearer {self._token}"))
        self.send(frame(HEADERS, END_HEADERS, stream, encode(fields)))
        return stream

    def send(self, data: bytes) -> None:
        """Any bytes."""
        if self._held is None:
            self._socket.sendall(data)
        else:
            self._held += data

    def settimeout(self, seconds: float) -> None:
        """For which a write may wait for the server to read; then it raises TimeoutError."""
        self._socket.settimeout(seconds)

    def message(self, stream: int, content: bytes, *, compressed: bool = False) -> None:
        """Sends a message, as fast as the server gives room for it, or until the server ends the stream."""
        data = struct.pack(">?I", compressed, len(content)) + content
        frames = self.frames()
        while data and stream in self._windows:
            size = min(MAX_FRAME_BYTES, self._window, self._windows[stream], len(data))
            if size <= 0:
                if self._held:
                    held, self._held = self._held, b""
                    self._socket.sendall(held)
                next(frames, None)
                continue
            self.send(frame(DATA, 0, stream, data[:size]))
            self._window -= size
            self._windows[stream] -= size
            data = data[size:]

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """(type, flags, stream, content) of what the server says, until it closes. Raises TimeoutError."""
        while True:
            while len(self._received) < 9 or len(self._received) < 9 + self._length:
                if not (found := self._read()):
                    self._windows.clear()
                    return
                self._received += found
            length = self._length
            kind, flags = self._received[3], self._received[4]
            stream = int.from_bytes(self._received[5:9], "big")
            content, self._received = self._received[9 : 9 + length], self._received[9 + length :]
            if kind == SETTINGS and not flags & ACK:
                self._settings(content)
                self.send(frame(SETTINGS, ACK, 0))
            elif kind == WINDOW_UPDATE:
                more = int.from_bytes(content, "big")
                if not stream:
                    self._window += more
                elif stream in self._windows:
                    self._windows[stream] += more
            elif kind == GOAWAY:
                self._windows.clear()
            elif kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
                self._windows.pop(stream, None)
            elif kind == PING and not flags & ACK:
                self.send(frame(PING, ACK, 0, content))
            if kind == HEADERS:
                self._said[stream] = content
            elif kind == DATA:
                self._take(length)
            yield kind, flags, stream, content

    def _read(self) -> bytes:
        try:
            return self._socket.recv(65_536)
        except ConnectionError:
            return b""

    def call(
        self, method: str, messages: Sequence[bytes], metadata: Sequence[tuple[str, str]] = ()
    ) -> dict[str, bytes]:
        """A whole call; returns what `end_of` does."""
        with self._together():
            stream = self.open(method, metadata)
            for message in messages:
                self.message(stream, message)
            if stream in self._windows:
                self.send(frame(DATA, END_STREAM, stream))
        return self.end_of(stream)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """One write for all that is sent, unless the server must give room in between."""
        self._held = b""
        try:
            yield
        finally:
            held, self._held = self._held, None
            self.send(held)

    def end_of(self, stream: int) -> dict[str, bytes]:
        """Waits until the server ends a stream; returns the last headers there, which say how it has ended. Empty: it
        was reset, or the connection closed."""
        frames = self.frames()
        while stream in self._windows:
            next(frames, None)
        return decode(self._said.pop(stream, b""))

    def _take(self, length: int) -> None:
        """Gives the server room again, now and then, for what it sends."""
        self._taken_bytes += length
        if self._taken_bytes > 2**20:
            self.send(frame(WINDOW_UPDATE, 0, 0, self._taken_bytes.to_bytes(4, "big")))
            self._taken_bytes = 0

    def _settings(self, content: bytes) -> None:
        for at in range(0, len(content), 6):
            number, value = struct.unpack(">HI", content[at : at + 6])
            if number == INITIAL_WINDOW_SIZE:
                for stream in self._windows:
                    self._windows[stream] += value - self._first_window
                self._first_window = value

    @property
    def _length(self) -> int:
        return int.from_bytes(self._received[:3], "big")

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content
