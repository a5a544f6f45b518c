"""The messages of one Train stream, by gRPC or by a lane: values come and go in them, or in memory that is shared with
the client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from time import perf_counter
from typing import Any

import grpc

from gradwire.server.access.pacing import LONGEST_SECONDS, Pace
from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.block import GradientSlice, Placed, Reply, Waiting
from gradwire.server.engine.workers import Holder
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.memory.shared_memory import SharedMemory
from gradwire.server.metrics.traffic import StreamBytes, stream_bytes
from gradwire.server.rpc.codec import (
    cut,
    decode_gradients,
    decode_request,
    encode_reply,
    encode_shared,
    encode_taken,
    encode_waiting,
)
from gradwire.server.rpc.lane import Lane
from gradwire.server.rpc.lanes import Offer
from gradwire.server.rpc.stream_guard import StreamGuard
from gradwire.v1 import train_pb2
from gradwire.wire.encoding import Array
from gradwire.wire.envelope import Opened, parameters_response
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.shared import Place

MAX_KEPT = 64
"""Messages that are read while room for an answer is waited for. Each of them but the last one is small."""

OFFER_SECONDS = 10.0
"""A client that has not said by then whether it has mapped the memory that it was offered goes without."""

Request = Opened[train_pb2.TrainRequest]

AtOnce = Callable[[GradientSlice], "Reply | None"]
"""Answers a block without any wait; None: that cannot be, and nothing has happened."""

UNSENT = object()
"""What a lane reads where an answer has been made that it has no room for."""


class TrainStream:
    """What comes after the attachment.

    Args:
        holder: whose stream it is.
        memory: what the client was offered; None: nothing.
        encoder: of the replies.
        budget: of what is kept while it waits.
        pace: what a block costs is waited for before the next one, of which no more is read; None: nobody counts.
        traffic: where its bytes are counted; None: nobody reads that.
        offer: of a lane; None: there is none.
    """

    def __init__(
        self,
        guard: StreamGuard,
        context: Any,
        holder: Holder,
        memory: SharedMemory | None,
        encoder: Encoder,
        budget: MemoryBudget,
        pace: Pace | None = None,
        traffic: StreamBytes | None = None,
        offer: Offer | None = None,
    ) -> None:
        self._guard = guard
        self._holder = holder
        self._read: Callable[[], Awaitable[Any]] = context.read
        self._write: Callable[[bytes], Awaitable[None]] = context.write
        self._lane_offer = offer
        self._moved = False
        self._memory = memory
        self._encoder = encoder
        self._budget = budget
        self._pace = pace
        self._traffic = traffic or stream_bytes()
        self._paced_seconds = 0.0  # what it has waited for
        self._between = True  # no block is arriving
        self._offer: asyncio.TimerHandle | None = None
        if memory is not None:
            self._offer = asyncio.get_running_loop().call_later(OFFER_SECONDS, memory.withdraw)
        self._kept: deque[Request | None] = deque()
        self._received = 0  # slices of gradients, in shared memory
        self._owed = False  # the client waits to be told how many of them have been taken
        self._answered = False
        self.left = False
        """Whether the client has said that its worker leaves."""
        self.at_once: AtOnce | None = None
        """Is asked first for what comes by a lane; None: nothing is answered so."""
        self.on_answered: Callable[[], object] = lambda: None
        """Called when what ``at_once`` has answered has been sent."""

    def close(self) -> None:
        """Ends it, before its stream ends with a status: what has been answered arrives before that."""
        if self._offer is not None:
            self._offer.cancel()
        if self._lane_offer is not None:
            self._lane_offer.close()

    async def receive(self) -> GradientSlice | None:
        """The next slice; None at the end. What lies in shared memory must have been taken when the next one is asked
        for, or a reply is sent. Raises ProtocolViolation, InvalidSlice."""
        if self._owed:
            self._owed = False
            await self._guard.write(self._write, encode_taken(self._received))
        while True:
            request = self._kept.popleft() if self._kept else await self._next()
            if request is None:
                return None
            if request.message.WhichOneof("message") == "leave":
                self.left = True
                return None
            if request.message.WhichOneof("message") == "gradients":
                if self._between and self._pace is not None and self._pace.wait_seconds():
                    with self._budget.reserve(len(request.data), "the beginning of a block that waits"):
                        self._holder.paced_at = perf_counter()
                        self._paced_seconds = await self._guard.keep(self._pace, LONGEST_SECONDS)
                        self._holder.paced_at = 0.0
                return self._slice(request)
            self._hear(request.message)

    async def send(self, reply: Reply | Waiting) -> None:
        """Writes a reply, when there is room for it."""
        if isinstance(reply, Waiting):
            await self._guard.write(self._write, encode_waiting(reply))
            return
        for parameters, data in encode_reply(reply, self._encoder):
            last = parameters.HasField("receipt")
            placed = None
            if data is not None and self._memory is not None:
                placed = await self._placed(self._memory, parameters.offset, data, written=reply.written, last=last)
            if placed is not None:
                self._owed = False
                parameters.shared.CopyFrom(encode_shared(placed, self._received))
            if last:
                self._answered = self._between = True
                parameters.receipt.paced_seconds = self._paced_seconds
                self._paced_seconds = 0.0
            if data is not None:
                (self._traffic.sent if placed is None else self._traffic.sent_shared).bytes += data.nbytes
                if self._pace is not None:
                    self._pace.use(0, data.nbytes)
            for message in _responses(parameters, None if placed else data):
                await self._guard.write(self._write, message)

    async def _next(self) -> Request | None:
        """None: the end of the stream."""
        while (found := await self._guard.read(self._read)) is UNSENT:
            await self._guard.hear(self._lane.flush)
            self.on_answered()
        return _opened(found)

    # --- by a lane ---------------------------------------------------------------------------------------------------

    @property
    def _lane(self) -> Lane:
        """Raises ProtocolViolation where the client has not taken any."""
        lane = None if self._lane_offer is None else self._lane_offer.lane
        if lane is None:
            raise ProtocolViolation("the stream is said to have moved to a lane, but this one has none")
        return lane

    def _move(self) -> None:
        """From now on messages come and go by the lane."""
        lane = self._lane
        self._moved = True
        self._read, self._write = lane.read, lane.write
        self._traffic = self._traffic.by_lane
        # Who is counted may have to wait, and what lies in shared memory comes in order with other slices of it.
        if self.at_once is not None and self._pace is None and self._memory is None:
            lane.at_once = self._answer_at_once

    def _answer_at_once(self, serialized: bytes) -> object | None:
        """See `Lane.at_once`. What the stream has been told to end for comes first, and so does what is kept."""
        request = decode_request(serialized)
        message: train_pb2.Gradients = request.message.gradients
        if not message.last or not self._between or self._guard.ending or self._kept or message.HasField("shared"):
            return request
        assert self.at_once is not None
        reply = self.at_once(decode_gradients(message, request.data))
        if reply is None:
            return request
        self._traffic.received.bytes += len(request.data)
        room = True
        for parameters, data in encode_reply(reply, self._encoder):
            if data is not None:
                self._traffic.sent.bytes += data.nbytes
            for response in _responses(parameters, data):
                room = self._lane.send(response)
        if not room:
            return UNSENT
        self.on_answered()
        return None

    # --- of gradients ------------------------------------------------------------------------------------------------

    def _slice(self, request: Request) -> GradientSlice:
        message: train_pb2.Gradients = request.message.gradients
        memory = self._memory
        if self._answered and memory is not None:
            memory.all_taken()
        self._answered = False
        if not message.HasField("shared"):
            self._traffic.received.bytes += len(request.data)
            return self._counted(decode_gradients(message, request.data))
        shared = message.shared
        if request.data:
            raise ProtocolViolation("a slice has both data and a place in shared memory; expected one of them")
        if memory is None:
            raise ProtocolViolation("a slice lies in a region, but this stream has none")
        data = memory.gradients(shared.position, shared.size_bytes, shared.acknowledge)
        memory.taken(shared.taken)
        self._traffic.received_shared.bytes += shared.size_bytes
        self._received += 1
        self._owed = self._owed or shared.acknowledge
        return self._counted(decode_gradients(message, data))

    def _counted(self, part: GradientSlice) -> GradientSlice:
        self._between = False
        if self._pace is not None:
            self._pace.use(0, len(part.data))
        return part

    def _hear(self, message: train_pb2.TrainRequest) -> None:
        kind = message.WhichOneof("message")
        if kind == "moved" and not self._moved:
            self._move()
            return
        if self._memory is None or kind not in ("mapped", "taken"):
            raise ProtocolViolation(f"expected 'gradients' here, got {kind!r}")
        if kind == "mapped":
            self._memory.confirm(message.mapped.proof, message.mapped.in_place)
            self._encoder.slice_bytes = self._memory.reply_bytes
        else:
            self._memory.taken(message.taken.slices)

    async def _placed(
        self, memory: SharedMemory, offset: int, data: Array, *, written: bool, last: bool
    ) -> Placed | None:
        """Writes data to shared memory, unless it has been ``written`` there; None: it must go in its message."""
        if not memory.carries(data.nbytes):
            return None
        if memory.in_place:
            alone = self._encoder.dense == data.dtype and data.shape[0] == 1
            place = memory.place(data.nbytes, offset * data.itemsize, last=last) if alone else None
        else:
            place = await self._room(memory, data.nbytes, last=last)
        if place is None:
            return None
        if not written:
            memory.parameters(place.position, data.nbytes).view(data.dtype).reshape(data.shape)[...] = data
        return Placed(place, data.nbytes)

    async def _room(self, memory: SharedMemory, size: int, *, last: bool) -> Place | None:
        """Waits until the client has taken enough of what is there, as long as it sends nothing that is large."""
        while (place := memory.place(size, 0, last=last)) is None:
            if self._kept and (self._kept[-1] is None or self._kept[-1].data or len(self._kept) == MAX_KEPT):
                return None
            request = _opened(await self._guard.hear(self._read))
            if request is not None and request.message.WhichOneof("message") == "taken":
                self._hear(request.message)
                continue
            self._kept.append(request)
            if request is not None and request.message.gradients.HasField("shared"):
                memory.taken(request.message.gradients.shared.taken)
        return place


def _opened(found: Any) -> Request | None:
    """None: the end of the stream. A lane may have looked into what it has read."""
    if found is grpc.aio.EOF:
        return None
    return found if isinstance(found, Opened) else decode_request(found)


def _responses(parameters: train_pb2.Parameters, data: Array | None) -> Iterator[bytes]:
    """Serialized; ``data`` is what ``parameters`` does not hold yet."""
    for piece, values in cut(parameters, data):
        if values is None:
            yield train_pb2.TrainResponse(parameters=piece).SerializeToString()
        else:
            yield parameters_response(piece, values)
