"""HTTP/2 by hand, as much as a stranger needs to say what no client of gRPC would."""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Iterator, Sequence
from types import TracebackType

from tests.faults.hosted import WAIT_SECONDS

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL = 8
"""Why a stream is reset."""
INITIAL_WINDOW_SIZE = 4
MAX_FRAME_BYTES = 16_384

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
        self._token = token
        self._next_stream = 1
        self._received = b""
        self._first_window = self._window = 65_535
        self.said: dict[int, bytes] = {}
        """By the server, on each stream."""
        self._windows: dict[int, int] = {}
        """What may still be sent on each open stream; `_window`: on all together."""
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0))

    def open(self, method: str, more: Sequence[tuple[str, str]] = (), *, last: bool = False) -> int:
        """Sends the headers of a call; returns its stream. ``last``: nothing follows."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._windows[stream] = self._first_window
        fields = [
            (":method", "POST"), (":scheme", "http"), (":path", f"{SERVICE}{method}"), (":authority", "localhost"),
            ("te", "trailers"), ("content-type", "application/grpc"), *more,
        ]  # fmt: skip
        if self._token:
            fields.append(("authorization", f"Bearer {self._token}"))
        self.send(frame(HEADERS, END_HEADERS | (END_STREAM if last else 0), stream, headers(fields)))
        return stream

    def send(self, data: bytes) -> None:
        """Any bytes."""
        self._socket.sendall(data)

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
            if stream and kind in (DATA, HEADERS):
                self.said[stream] = self.said.get(stream, b"") + content
            yield kind, flags, stream, content

    def _read(self) -> bytes:
        try:
            return self._socket.recv(65_536)
        except ConnectionError:
            return b""

    def end_of(self, stream: int) -> bytes:
        """Waits until the server ends a stream; returns all that it said there, header blocks as they are."""
        frames = self.frames()
        while stream in self._windows:
            next(frames, None)
        return self.said.get(stream, b"")

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

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def headers(fields: Sequence[tuple[str, str]]) -> bytes:
    """HPACK without tables and without Huffman's code: each field as it is."""
    return b"".join(b"\0" + _string(name.encode()) + _string(value.encode()) for name, value in fields)


def _string(data: bytes) -> bytes:
    size = len(data)
    if size < 127:
        return bytes([size]) + data
    rest, prefix = size - 127, b"\x7f"
    while rest >= 128:
        prefix, rest = prefix + bytes([rest % 128 + 128]), rest // 128
    return prefix + bytes([rest]) + data


def bomb(size_mebibytes: int) -> bytes:
    """Gzip of so many MiB of zeros, a thousandth as long."""
    zeros = bytes(2**20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)  # leaves nothing behind: may be repeated
    checksum = 0
    for _ in range(size_mebibytes):
        checksum = zlib.crc32(zeros, checksum)
    size = size_mebibytes * 2**20 % 2**32
    return (
        b"\x1f\x8b\x08" + bytes(6) + b"\xff" + piece * size_mebibytes + b"\x03\0" + struct.pack("<II", checksum, size)
    )
