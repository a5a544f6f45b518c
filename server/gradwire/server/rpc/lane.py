"""One lane, as the server has it: the messages of a Train stream that has moved from gRPC to a socket of this host."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc

from gradwire.wire.lane import PACKET_BYTES, Assembler, Packet, packets


class Lane:
    """A connected socket. Everything happens on the event loop.

    One message is read while another one is worked on, no more: then the peer has to wait.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._assembler = Assembler()
        self._arrived: deque[Any] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._unsent: deque[Packet] = deque()
        self._listens = False
        self._over = False
        self.at_once: Callable[[bytes], Any] | None = None
        """Is given each message that comes while `read` waits, where it has come: there is no turn of the event loop in
        between. What it returns is what `read` does; None: nothing is, the message has been answered."""

    async def read(self) -> Any:
        """The next message, `grpc.aio.EOF` at the end. Raises ProtocolViolation, and what ``at_once`` has raised."""
        if not self._arrived:
            if self._over:
                return grpc.aio.EOF
            self._arrival = self._loop.create_future()
            self._listen()
            try:
                await self._arrival
            finally:
                self._arrival = None
        found = self._arrived.popleft()
        if isinstance(found, BaseException):
            raise found
        return found

    async def write(self, message: bytes) -> None:
        """Sends a message, when there is room for it. To a peer that is gone nothing is sent: `read` finds its end.

        A packet that the system does not take (there may be less room for it than its size) ends the lane as well: the
        peer would wait for it for ever.
        """
        if not self.send(message):
            await self.flush()

    def send(self, message: bytes) -> bool:
        """Sends what there is room for; False: the rest must be waited for with `flush`."""
        self._unsent.extend(packets(message))
        return self._send_unsent()

    async def flush(self) -> None:
        """Waits until all has been sent."""
        while not self._send_unsent():
            room: asyncio.Future[None] = self._loop.create_future()
            self._loop.add_writer(self._socket, _settle, room)
            try:
                await room
            finally:
                self._loop.remove_writer(self._socket)

    def close(self) -> None:
        """Ends it: what has been sent still arrives. May be called more than once."""
        self._over = True
        self._stop_listening()
        self._socket.close()

    def _send_unsent(self) -> bool:
        while self._unsent:
            try:
                self._socket.sendmsg(self._unsent[0])
            except BlockingIOError:
                return False
            except OSError:
                self._unsent.clear()
                with suppress(OSError):  # it may be over already, or closed
                    self._socket.shutdown(socket.SHUT_RDWR)
                return True
            self._unsent.popleft()
        return True

    def _listen(self) -> None:
        if not self._listens:
            self._listens = True
            self._loop.add_reader(self._socket, self._readable)

    def _stop_listening(self) -> None:
        if self._listens:
            self._listens = False
            self._loop.remove_reader(self._socket)

    def _readable(self) -> None:
        try:
            packet = self._socket.recv(PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:  # the peer has gone, and left something unread
            packet = b""
        waits = self._arrival is not None and not self._arrival.done()
        try:
            found: Any = self._assembler.add(packet) if packet else grpc.aio.EOF
            if found is not None and packet and waits and self.at_once is not None:
                found = self.at_once(found)
        except BaseException as error:  # for the stream's own task to raise
            found, packet = error, b""
        if found is None:
            return
        self._arrived.append(found)
        if not packet:
            self._over = True
        if self._over or not waits:
            self._stop_listening()
        if waits and self._arrival is not None:
            self._arrival.set_result(None)


def _settle(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)
