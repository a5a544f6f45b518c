"""A proxy between a client's lane and the server's: it counts packets, and cuts where a test wants it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from types import TracebackType

from gradwire.wire.lane import PACKET_BYTES
from tests.faults.proxy import Direction


class LaneProxy:
    """Listens at ``path`` and passes packets, with the files in them, to ``server``. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.server = ""
        self.passed = {Direction.UP: 0, Direction.DOWN: 0}
        """Packets so far, over all lanes."""
        self.lanes = 0
        self.was_cut = threading.Event()
        self._cut_at: dict[Direction, int] = {}
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Breaks all lanes now; new ones are welcome."""
        with self._lock:
            self._cut_at.clear()
            self.was_cut.set()
            for end in self._open:
                _shut(end)

    def cut_after(self, direction: Direction, packets: int) -> None:
        """Breaks all lanes once, when so many more packets have passed."""
        with self._lock:
            self.was_cut.clear()
            self._cut_at[direction] = self.passed[direction] + packets
        if not packets:
            self.cut()

    def close(self) -> None:
        _shut(self._listener)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for end in self._open:
            end.close()

    def __enter__(self) -> LaneProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            server.connect(self.server)
            with self._lock:
                self.lanes += 1
                self._open += [client, server]
            for direction, source, sink in ((Direction.UP, client, server), (Direction.DOWN, server, client)):
                self._threads.append(threading.Thread(target=self._pump, args=(direction, source, sink), daemon=True))
                self._threads[-1].start()

    def _pump(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                packet, files, _, _ = socket.recv_fds(source, PACKET_BYTES, 1)
                if not packet:
                    break
                with self._lock:  # before it has arrived, and somebody looks
                    self.passed[direction] += 1
                    over = self.passed[direction] == self._cut_at.get(direction)
                socket.send_fds(sink, [packet], files)
                for file in files:
                    os.close(file)
                if over:
                    self.cut()
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
