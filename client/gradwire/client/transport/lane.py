"""A lane, as the client has it: a socket of this host by which a stream's messages go past gRPC."""

from __future__ import annotations

import os
import socket
import struct
import threading
import weakref
from contextlib import suppress

from gradwire.client.transport.call_threads import POLL_SECONDS
from gradwire.v1 import train_pb2
from gradwire.wire.hosts import is_unix
from gradwire.wire.lane import AVAILABLE, PACKET_BYTES, SUFFIX, WELCOME, Assembler, Packet, packets, user_at

_CONNECT_SECONDS = 2.0
"""The server's answer may take so long; then there is no lane."""


class Lane:
    """Connected, and let in. One thread reads, and one at a time writes; any may `shut` and `close` it.

    Args:
        target: that the client has called.

    Raises OSError where it cannot be had.
    """

    def __init__(self, target: str, offer: train_pb2.Lane) -> None:
        if not AVAILABLE:
            raise OSError("only Linux has lanes")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._assembler = Assembler()
        self._users = 1  # threads that are inside, and who has made it; the last one closes the socket
        self._closed = False
        self._lock = threading.Lock()
        self.file_descriptor = -1
        """Of the region's memory file, for who takes it; below 0: none has come."""
        try:
            self._socket.settimeout(_CONNECT_SECONDS)
            self._socket.connect(_path(target, offer))
            if user_at(self._socket) != os.geteuid():
                raise OSError("the lane's socket is served by another user")
            self._socket.send(offer.nonce)
            welcome, files, _, _ = socket.recv_fds(self._socket, len(WELCOME) + 1, 1)
            if files:
                self.file_descriptor = files[0]
            if welcome != WELCOME:
                raise OSError("the server did not let the lane in")
            # Ends each wait now and then, so that Python notices signals; unlike a time-out of its own in one call.
            self._socket.settimeout(None)
            patience = struct.pack("@ll", 0, int(POLL_SECONDS * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        except BaseException:
            self.close()
            raise
        _lanes.add(self)

    def send(self, message: bytes) -> None:
        """Waits for room as long as the lane lasts. To one that is over nothing is sent, and `receive` says so."""
        if not self._enter():
            return
        try:
            for packet in packets(message):
                while not self._send(packet):
                    pass
        except OSError:
            pass
        finally:
            self._leave()

    def receive(self) -> bytes | None:
        """The next message; None: the lane is over. Raises ProtocolViolation."""
        if not self._enter():
            return None
        try:
            message = None
            while message is None:
                try:
                    packet = self._socket.recv(PACKET_BYTES)
                except (BlockingIOError, ConnectionResetError):
                    continue  # a reset is told once, before what the server has sent: it has left something unread
                if not packet:
                    return None
                message = self._assembler.add(packet)
            return message
        except OSError:
            return None
        finally:
            self._leave()

    def finish(self) -> None:
        """Nothing more is sent: ends the stream in order."""
        self._shut(socket.SHUT_WR)

    def shut(self) -> None:
        """Ends all waits for it. For any thread."""
        self._shut(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends it for good. May be called more than once."""
        self.shut()
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._leave()

    def take_file(self) -> int:
        """``file_descriptor``, which is the caller's from then on."""
        taken, self.file_descriptor = self.file_descriptor, -1
        return taken

    def _send(self, packet: Packet) -> bool:
        """False: there was no room for a while."""
        try:
            self._socket.sendmsg(packet)
        except BlockingIOError:
            return False
        return True

    def _shut(self, how: int) -> None:
        with self._lock, suppress(OSError):  # it is over already
            self._socket.shutdown(how)

    def _enter(self) -> bool:
        with self._lock:
            if self._closed:
                return False
            self._users += 1
        return True

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._let_go()

    def _let_go(self) -> None:
        _lanes.discard(self)
        self._socket.close()
        taken = self.take_file()
        if taken >= 0:
            os.close(taken)


def _path(target: str, offer: train_pb2.Lane) -> str:
    if offer.path:
        return offer.path
    if not is_unix(target) or not target.startswith("unix:"):
        raise OSError(f"the server has named no path, and {target} is none")
    return target.removeprefix("unix:") + SUFFIX


_lanes: weakref.WeakSet[Lane] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child, whose copy would keep the lane open when its parent has gone."""
    for lane in list(_lanes):
        lane._let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
