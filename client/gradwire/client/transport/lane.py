"""A lane, as the client has it: a socket of this host by which a stream's messages go past gRPC."""

from __future__ import annotations

import os
import socket
import struct
import weakref
from contextlib import suppress

from gradwire.client.transport.call_threads import POLL_SECONDS
from gradwire.v1 import train_pb2
from gradwire.wire.hosts import is_unix
from gradwire.wire.lane import AVAILABLE, PACKET_BYTES, SUFFIX, WELCOME, Assembler, Packet, packets, user_at

_CONNECT_SECONDS = 2.0
"""The server's answer may take so long; then there is no lane."""


class _Connection(socket.socket):
    """Is closed with its last user and not before, when a thread might still read from a number that is another file's
    by then. No lock guards that: Ctrl-C could leave it held."""

    # One call of C, in which no Ctrl-C is noticed: it would be swallowed there, and the file left open.
    __del__ = socket.SocketType.close


class Lane:
    """Connected, and let in. One thread reads, and one at a time writes; any may `shut` it. It is closed with the last
    reference to it.

    Args:
        target: that the client has called.

    Raises OSError where it cannot be had.
    """

    def __init__(self, target: str, offer: train_pb2.Lane) -> None:
        self.file_descriptor = -1
        """Of the region's memory file, for who takes it; below 0: none has come."""
        if not AVAILABLE:
            raise OSError("only Linux has lanes")
        self._assembler = Assembler()
        self._socket = _Connection(socket.AF_UNIX, socket.SOCK_SEQPACKET)
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
        _lanes.add(self)

    def __del__(self) -> None:
        if self.file_descriptor >= 0:  # nobody has taken it
            os.close(self.file_descriptor)

    def send(self, message: bytes) -> None:
        """Waits for room as long as the lane lasts. To one that is over nothing is sent, and `receive` says so.

        A packet that the system does not take (there may be less room for it than its size) ends the lane: the server
        would wait for it for ever.
        """
        try:
            for packet in packets(message):
                while not self._send(packet):
                    pass
        except OSError:
            self.shut()

    def receive(self) -> bytes | None:
        """The next message; None: the lane is over. Raises ProtocolViolation."""
        while True:
            try:
                packet = self._socket.recv(PACKET_BYTES)
            except (BlockingIOError, ConnectionResetError):
                continue  # a reset is told once, before what the server has sent: it has left something unread
            except OSError:
                return None
            if not packet:
                return None
            message = self._assembler.add(packet)
            if message is not None:
                return message

    def finish(self) -> None:
        """Nothing more is sent: ends the stream in order."""
        self._shut(socket.SHUT_WR)

    def shut(self) -> None:
        """Ends it, and all waits for it. May be called more than once."""
        self._shut(socket.SHUT_RDWR)

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
        with suppress(OSError):  # it is over already
            self._socket.shutdown(how)


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
        lane._socket.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
