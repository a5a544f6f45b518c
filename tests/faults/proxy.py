"""A TCP proxy between a client and a server that harms the connection where a test wants it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from enum import Enum
from types import TracebackType
from typing import Any

_CHUNK_BYTES = 64 * 1024
_BUFFER_BYTES = 64 * 1024
"""Small socket buffers, so that a stalled direction is felt at its other end soon."""


class Direction(Enum):
    """Which way bytes flow."""

    UP = "client to server"
    DOWN = "server to client"


class Proxy:
    """Passes bytes between ``target`` and whoever connects to its own ``target``. A context manager.

    Args:
        target: ``host:port`` or ``unix:PATH``.

    Faults act on the connections that are open and on later ones.
    """

    def __init__(self, target: str) -> None:
        self._server = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.passed = {Direction.UP: 0, Direction.DOWN: 0}
        """Bytes so far, over all connections."""
        self.connections = 0
        self.refused = 0
        self.was_cut = threading.Event()
        self._state = threading.Condition()
        self._stalled: set[Direction] = set()
        self._rates: dict[Direction, float] = {}
        self._cut_at: dict[Direction, int] = {}
        self._refusing = False
        self._closed = False
        self._open: set[socket.socket] = set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept)

    # --- faults --------------------------------------------------------------------------------------------------

    def cut(self, *, and_resume: bool = True) -> None:
        """Breaks all connections now; new ones are welcome, and not stalled unless ``and_resume`` is false."""
        with self._state:
            for connection in self._open:
                _reset(connection)
            self._open.clear()
            if and_resume:
                self._stalled.clear()
            self._cut_at.clear()
            self.was_cut.set()
            self._state.notify_all()

    def cut_after(self, direction: Direction, size_bytes: int) -> None:
        """Breaks all connections once, when ``size_bytes`` more have passed in ``direction``."""
        with self._state:
            self.was_cut.clear()
            self._cut_at[direction] = self.passed[direction] + size_bytes

    def stall(self, *directions: Direction) -> None:
        """Nothing passes any more, without any connection being closed. Default: both ways."""
        with self._state:
            self._stalled.update(directions or Direction)

    def resume(self) -> None:
        """Ends `stall`."""
        with self._state:
            self._stalled.clear()
            self._state.notify_all()

    def throttle(self, direction: Direction, bytes_per_second: float) -> None:
        """Passes single bytes at this rate."""
        with self._state:
            self._rates[direction] = bytes_per_second

    def refuse(self) -> None:
        """Breaks all connections, and new ones at once."""
        self._refusing = True
        self.cut()

    def welcome(self) -> None:
        """Ends `refuse`."""
        self._refusing = False

    # --- how it works --------------------------------------------------------------------------------------------

    def _spawn(self, function: object, *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                self.refused += 1
                _reset(client)
                client.close()
                continue
            server = self._connect()
            if server is None:
                client.close()
                continue
            with self._state:
                self.connections += 1
                self._open.update((client, server))
                self._pairs.append((client, server))
            done = threading.Barrier(2)
            self._spawn(self._pump, Direction.UP, client, server, done)
            self._spawn(self._pump, Direction.DOWN, server, client, done)

    def _connect(self) -> socket.socket | None:
        """A connection to the server; None where it does not listen."""
        if self._server.startswith("unix:"):
            address: Any = self._server.removeprefix("unix:")
        else:
            host, _, port = self._server.rpartition(":")
            address = (host, int(port))
        server = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        try:
            server.connect(address)
        except OSError:
            server.close()
            return None
        return server

    def _pump(self, direction: Direction, source: socket.socket, sink: socket.socket, done: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            while self._wait_turn(direction, source):
                data = source.recv(1 if direction in self._rates else _CHUNK_BYTES)
                if not data or not self._wait_turn(direction, source):
                    break
                with self._state:
                    room = self._cut_at.get(direction, 2**63) - self.passed[direction]
                    data = data[:room]
                    self.passed[direction] += len(data)
                sink.sendall(data)
                if len(data) == room:
                    self.cut()
        _reset(source)
        _reset(sink)
        done.wait()
        source.close()
        with self._state:
            self._open.discard(source)
            self._pairs = [pair for pair in self._pairs if source not in pair]

    def _wait_turn(self, direction: Direction, source: socket.socket) -> bool:
        """Waits while the direction is stalled or throttled; False when the connection has been cut meanwhile."""
        with self._state:
            self._state.wait_for(lambda: direction not in self._stalled or source not in self._open)
            rate = self._rates.get(direction)
            if rate is not None:
                deadline = time.monotonic() + 1 / rate
                while source in self._open and (left := deadline - time.monotonic()) > 0:
                    self._state.wait(left)
            return source in self._open

    def close(self) -> None:
        """Breaks everything and ends the threads."""
        _reset(self._listener)
        self._listener.close()
        self.refuse()
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _reset(connection: socket.socket) -> None:
    """Makes every use of the connection, at both ends, fail; its owner closes it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
