"""Packets of the socket by which a stream's messages go between two processes of one host; see ``gradwire.v1.Lane``."""

from __future__ import annotations

import socket
import struct
import sys

from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.service import MAX_MESSAGE_BYTES

AVAILABLE = sys.platform == "linux"
"""Whether this system has what lanes need: packets in order, and the user of who sends them."""

SUFFIX = ".lane"
"""What a lane's socket has in its name beside that of the unix socket that it lies beside."""

NONCE_BYTES = 40
HANDSHAKE_SECONDS = 10.0
"""Within which an offer is taken."""

WELCOME = b"\0"
"""The server's answer to the nonce."""

PART_BYTES = 64 * 2**10
"""Of a message in one packet, at most."""

PACKET_BYTES = PART_BYTES + 2
"""To ask for at a time: one more than there is in the largest packet, so that one that is too large is noticed."""

_MAX_BYTES = MAX_MESSAGE_BYTES + 64 * 1024

_ENDS, _GOES_ON = b"\0", b"\1"

Packet = tuple[bytes, bytes | memoryview]
"""Whether the message goes on in the next one, and the part of it, to be sent as one."""


def packets(message: bytes) -> list[Packet]:
    """All packets of a message."""
    if len(message) <= PART_BYTES:
        return [(_ENDS, message)]
    view = memoryview(message)
    parts = [view[start : start + PART_BYTES] for start in range(0, len(message), PART_BYTES)]
    return [*((_GOES_ON, part) for part in parts[:-1]), (_ENDS, parts[-1])]


def user_at(connection: socket.socket) -> int:
    """The user of the process at the other end of a unix socket, by the number that it has here."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


class Assembler:
    """Packets as they come -> messages."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, packet: bytes) -> bytes | None:
        """The message that ``packet`` ends; None: it goes on. Raises ProtocolViolation."""
        kind, part = packet[:1], packet[1:]
        if kind == _ENDS and not self._parts and len(part) <= PART_BYTES:
            return part
        self._size += len(part)
        if kind not in (_ENDS, _GOES_ON) or len(part) > PART_BYTES or self._size > _MAX_BYTES:
            raise ProtocolViolation(
                f"a packet of {len(packet)} bytes begins with {kind!r}, in a message of {self._size} so far; expected "
                f"0 or 1, and at most {PART_BYTES} bytes of a message of at most {_MAX_BYTES}"
            )
        self._parts.append(part)
        if kind == _GOES_ON:
            return None
        message = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return message
