"""Messages survive being cut into packets, and nothing else is put together."""

from __future__ import annotations

import pytest

from gradwire.wire import lane
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.lane import PART_BYTES, Assembler, packets
from gradwire.wire.service import MAX_MESSAGE_BYTES

EDGES = (0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, MAX_MESSAGE_BYTES)


def test_messages_of_every_size_one_after_another() -> None:
    """Each packet has at most a byte more than a part, and only the last one of a message ends it."""
    assembler = Assembler()
    for size in EDGES:
        message = bytes(index % 251 for index in range(min(size, 1000))) + bytes(max(size - 1000, 0))
        sent = [b"".join(packet) for packet in packets(message)]
        assert len(sent) == max(1, -(-size // PART_BYTES))
        assert max(map(len, sent)) <= PART_BYTES + 1 < lane.PACKET_BYTES
        assert [assembler.add(packet) for packet in sent[:-1]] == [None] * (len(sent) - 1)
        assert assembler.add(sent[-1]) == message


@pytest.mark.parametrize("packet", [b"", b"\2", b"\xff" + bytes(10), b"\0" + bytes(PART_BYTES + 1)])
@pytest.mark.parametrize("begun", [False, True])
def test_what_is_no_packet(packet: bytes, begun: bool) -> None:
    assembler = Assembler()
    if begun:
        assert assembler.add(b"\1abc") is None
    with pytest.raises(ProtocolViolation, match="expected 0 or 1"):
        assembler.add(packet)


def test_a_message_that_does_not_end() -> None:
    """It is given up before it is larger than any message may be."""
    assembler = Assembler()
    part = b"\1" + bytes(PART_BYTES)
    for _ in range(MAX_MESSAGE_BYTES // PART_BYTES + 1):
        assert assembler.add(part) is None
    with pytest.raises(ProtocolViolation, match="of a message of at most"):
        assembler.add(part)
