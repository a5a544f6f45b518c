"""The messages of one Train stream, by gRPC or by a lane: values come and go in them, or in memory that is shared with
the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

from gradwire.server.access.pacing import LONGEST_SECONDS, Pace
from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.block import GradientSlice, Reply, Waiting
from gradwire.server.engine.workers import Holder
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.memory.shared_memory import SharedMemory
from gradwire.server.metrics.traffic import StreamBytes, stream_bytes
from gradwire.server.rpc.codec import GradientsDecoder, cut, decode_request, encode_reply, encode_waiting
from gradwire.server.rpc.lane import Lane
from gradwire.server.rpc.lanes import Offer
from gradwire.server.rpc.requests import UNSENT, Request, Requests
from gradwire.server.rpc.stream_guard import StreamGuard
from gradwire.server.rpc.stream_region import StreamRegion
from gradwire.server.rpc.whole_answer import WholeAnswers
from gradwire.v1 import train_pb2
from gradwire.wire.encoding import Array
from gradwire.wire.envelope import parameters_response
from gradwire.wire.errors import ProtocolViolation

AtOnce = Callable[[GradientSlice], "Reply | None"]
"""Answers a block without any wait; None: that cannot be, and nothing has happened."""


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
        self._requests = Requests(guard, context.read, self._send_unsent)
        self._write: Callable[[bytes], Awaitable[None]] = context.write
        self._lane_offer = offer
        self._moved = False
        self._region = None if memory is None else StreamRegion(memory, encoder, self._requests)
        self._encoder = encoder
        self._gradients = GradientsDecoder()
        self._whole_answers = WholeAnswers(encoder)
        self._budget = budget
        self._pace = pace
        self._traffic = traffic or stream_bytes()
        self._paced_seconds = 0.0  # what it has waited for
        self._between = True  # no block is arriving
        self.left = False
        """Whether the client has said that its worker leaves."""
        self.at_once: AtOnce | None = None
        """Is asked first for what comes by a lane; None: nothing is answered so."""
        self.on_answered: Callable[[], object] = lambda: None
        """Called when what ``at_once`` has answered has been sent."""

    def close(self) -> None:
        """Ends it, before its stream ends with a status: what has been answered arrives before that."""
        if self._region is not None:
            self._region.close()
        if self._lane_offer is not None:
            self._lane_offer.close()

    async def receive(self) -> GradientSlice | None:
        """The next slice; None at the end. What lies in shared memory must have been taken when the next one is asked
        for, or a reply is sent. Raises ProtocolViolation, InvalidSlice."""
        if self._region is not None and (owed := self._region.owed()) is not None:
            await self._guard.write(self._write, owed)
        while True:
            request = await self._requests.next()
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
            shared = False
            if data is not None and self._region is not None:
                shared = await self._region.put(parameters, data, written=reply.written, last=last)
            if last:
                self._between = True
                if self._region is not None:
                    self._region.answered()
                parameters.receipt.paced_seconds = self._paced_seconds
                self._paced_seconds = 0.0
            if data is not None:
                (self._traffic.sent_shared if shared else self._traffic.sent).bytes += data.nbytes
                if self._pace is not None:
                    self._pace.use(0, data.nbytes)
            for message in _responses(parameters, None if shared else data):
                await self._guard.write(self._write, message)

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
        self._requests.read, self._write = lane.read, lane.write
        self._traffic = self._traffic.by_lane
        # Who is counted may have to wait, and what lies in shared memory comes in order with other slices of it.
        if self.at_once is not None and self._pace is None and self._region is None:
            lane.at_once = partial(self._answer_at_once, lane)

    async def _send_unsent(self) -> None:
        """Waits until there is room for what `_answer_at_once` has made."""
        await self._guard.hear(self._lane.flush)
        self.on_answered()

    def _answer_at_once(self, lane: Lane, serialized: bytes) -> object | None:
        """See `Lane.at_once`. What the stream has been told to end for comes first, and so does what is kept."""
        request = decode_request(serialized)
        message: train_pb2.Gradients = request.message.gradients
        busy = not self._between or self._guard.ending or self._requests.waiting
        if busy or not message.last or message.HasField("shared"):
            return request
        assert self.at_once is not None
        reply = self.at_once(self._gradients.decode(message, request.data))
        if reply is None:
            return request
        self._traffic.received.bytes += len(request.data)
        room = True
        whole = self._whole_answers.encode(reply)
        if whole is not None:
            response, size = whole
            self._traffic.sent.bytes += size
            room = lane.send(response)
        else:
            for parameters, data in encode_reply(reply, self._encoder):
                if data is not None:
                    self._traffic.sent.bytes += data.nbytes
                for response in _responses(parameters, data):
                    room = lane.send(response)
        if not room:
            return UNSENT
        self.on_answered()
        return None

    # --- of gradients ------------------------------------------------------------------------------------------------

    def _slice(self, request: Request) -> GradientSlice:
        message: train_pb2.Gradients = request.message.gradients
        region = self._region
        if region is not None:
            region.begin_slice()
        if not message.HasField("shared"):
            self._traffic.received.bytes += len(request.data)
            return self._counted(self._gradients.decode(message, request.data))
        if request.data:
            raise ProtocolViolation("a slice has both data and a place in shared memory; expected one of them")
        if region is None:
            raise ProtocolViolation("a slice lies in a region, but this stream has none")
        data = region.gradients(message.shared)
        self._traffic.received_shared.bytes += message.shared.size_bytes
        return self._counted(self._gradients.decode(message, data))

    def _counted(self, part: GradientSlice) -> GradientSlice:
        self._between = False
        if self._pace is not None:
            self._pace.use(0, len(part.data))
        return part

    def _hear(self, message: train_pb2.TrainRequest) -> None:
        kind = message.WhichOneof("message")
        if kind == "moved" and not self._moved:
            self._move()
        elif self._region is None or not self._region.hear(message):
            raise ProtocolViolation(f"expected 'gradients' here, got {kind!r}")


def _responses(parameters: train_pb2.Parameters, data: Array | None) -> Iterator[bytes]:
    """Serialized; ``data`` is what ``parameters`` does not hold yet."""
    for piece, values in cut(parameters, data):
        if values is None:
            yield train_pb2.TrainResponse(parameters=piece).SerializeToString()
        else:
            yield parameters_response(piece, values)
