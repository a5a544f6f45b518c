"""A lane reads no more than it is asked for, and sends as fast as it is read."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import grpc
import pytest

from gradwire.server.rpc.lane import Lane

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The lane's, and the peer's."""
    ours, peers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    peers.setblocking(False)
    yield ours, peers
    ours.close()
    peers.close()


def run(ends: Ends, act: Callable[[Lane], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        lane = Lane(ends[0])
        try:
            await asyncio.wait_for(act(lane), 10)
        finally:
            lane.close()

    asyncio.run(main())


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_it_reads_one_message_ahead_and_no_more(ends: Ends) -> None:
    async def act(lane: Lane) -> None:
        for number in range(5):
            ends[1].send(b"\0" + bytes([number]))
        assert await lane.read() == b"\0"
        await turns()
        assert len(lane._arrived) == 1
        assert [await lane.read() for _ in range(4)] == [b"\1", b"\2", b"\3", b"\4"]
        ends[1].shutdown(socket.SHUT_WR)
        assert await lane.read() is grpc.aio.EOF
        assert await lane.read() is grpc.aio.EOF

    run(ends, act)


def test_a_read_that_is_given_up_loses_nothing(ends: Ends) -> None:
    async def act(lane: Lane) -> None:
        reading = asyncio.ensure_future(lane.read())
        await turns()
        reading.cancel()
        await turns()
        ends[1].send(b"\0kept")
        assert await lane.read() == b"kept"

    run(ends, act)


def test_what_is_answered_at_once_is_not_read(ends: Ends) -> None:
    """Only while somebody waits to read, and in order; an error is the reader's, and the last thing that is read."""
    seen = []

    def at_once(message: bytes) -> bytes | None:
        seen.append(message)
        if message == b"bad":
            raise ValueError("of no use")
        return None if message == b"mine" else message

    async def act(lane: Lane) -> None:
        lane.at_once = at_once
        for message in (b"mine", b"mine", b"yours", b"mine"):
            ends[1].send(b"\0" + message)
        assert await lane.read() == b"yours"
        await turns()
        assert seen == [b"mine", b"mine", b"yours"]  # the reader is at work
        assert await lane.read() == b"mine"
        ends[1].send(b"\0bad")
        ends[1].send(b"\0more")
        with pytest.raises(ValueError, match="of no use"):
            await lane.read()
        assert await lane.read() is grpc.aio.EOF

    run(ends, act)


def test_it_waits_for_room(ends: Ends) -> None:
    """And sends the rest, in order, when the peer has read."""
    message = bytes(range(256)) * 8192  # 2 MiB

    async def act(lane: Lane) -> None:
        writing = asyncio.ensure_future(lane.write(message))
        await turns()
        assert not writing.done()
        got = bytearray()
        loop = asyncio.get_running_loop()
        while len(got) < len(message):
            packet = await loop.sock_recv(ends[1], 70_000)
            got += packet[1:]
        await writing
        assert got == message

    run(ends, act)


def test_to_a_peer_that_is_gone_nothing_is_sent(ends: Ends) -> None:
    async def act(lane: Lane) -> None:
        ends[1].send(b"\0unread")
        ends[1].close()
        await lane.write(b"nobody hears this")
        assert await lane.read() == b"unread"
        assert await lane.read() is grpc.aio.EOF

    run(ends, act)
