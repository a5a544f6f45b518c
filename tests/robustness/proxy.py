"""The proxy of ``tests/faults``, with further ways to harm a connection, and patient while a server starts again."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.faults.proxy import Direction, Proxy

_PATIENCE_SECONDS = 5.0
"""A client is kept waiting so long for a server that does not listen: it would not try again for seconds otherwise."""


class RoughProxy(Proxy):
    """A context manager; ``target`` is where clients connect."""

    def __init__(self, target: str) -> None:
        self._delays: dict[Direction, float] = {}
        self.cuts = 0
        """How often connections that were open have been cut."""
        self.cut_connections = 0
        super().__init__(target)

    def cut(self, *, and_resume: bool = True) -> None:
        with self._state:
            if not self._refusing:
                self.cuts += bool(self._pairs)
                self.cut_connections += len(self._pairs)
        super().cut(and_resume=and_resume)

    def delay(self, direction: Direction, seconds: float) -> None:
        """Everything in this direction comes later by so much; 0 ends it."""
        with self._state:
            self._delays[direction] = seconds
            self._state.notify_all()

    def half_close(self, direction: Direction) -> None:
        """Tells those who receive in this direction that the connection has ended; the other direction stays open."""
        with self._state:
            for client, server in self._pairs:
                with contextlib.suppress(OSError):
                    (server if direction is Direction.UP else client).shutdown(socket.SHUT_WR)

    def _connect(self) -> socket.socket | None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (server := super()._connect()) is None:
            if self._refusing or time.monotonic() > deadline:
                return None
            time.sleep(0.01)
        return server

    def _wait_turn(self, direction: Direction, source: socket.socket) -> bool:
        seconds = self._delays.get(direction, 0.0)
        if seconds:
            with self._state:
                self._state.wait_for(lambda: source not in self._open, seconds)
        return super()._wait_turn(direction, source)
