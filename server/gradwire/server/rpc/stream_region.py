"""What one Train stream has in memory that is shared with its client: gradients to be taken, answers put there."""

from __future__ import annotations

import asyncio

from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.block import Placed
from gradwire.server.memory.shared_memory import SharedMemory, SharedSlice
from gradwire.server.rpc.codec import encode_shared, encode_taken
from gradwire.server.rpc.requests import Requests
from gradwire.v1 import train_pb2
from gradwire.wire.encoding import Array
from gradwire.wire.shared import Place

OFFER_SECONDS = 10.0
"""A client that has not said by then whether it has mapped the memory that it was offered goes without."""


class StreamRegion:
    """Of one stream.

    Args:
        memory: what the client was offered.
        encoder: of the replies.
        requests: are read ahead where an answer has to wait for room.
    """

    def __init__(self, memory: SharedMemory, encoder: Encoder, requests: Requests) -> None:
        self._memory = memory
        self._encoder = encoder
        self._requests = requests
        self._offer = asyncio.get_running_loop().call_later(OFFER_SECONDS, memory.withdraw)
        self._received = 0  # slices of gradients
        self._owed = False  # the client waits to be told how many of them have been taken
        self._answered = False

    def close(self) -> None:
        """Ends the wait for the client to take the offer."""
        self._offer.cancel()

    def hear(self, message: train_pb2.TrainRequest) -> bool:
        """What the client says of the memory; False: it speaks of something else. Raises ProtocolViolation."""
        kind = message.WhichOneof("message")
        if kind == "mapped":
            self._memory.confirm(message.mapped.proof, message.mapped.in_place)
            self._encoder.slice_bytes = self._memory.reply_bytes
        elif kind == "taken":
            self._memory.taken(message.taken.slices)
        else:
            return False
        return True

    def owed(self) -> bytes | None:
        """What the client waits to be told, serialized; None: nothing. All that it has sent has been taken."""
        if not self._owed:
            return None
        self._owed = False
        return encode_taken(self._received)

    def begin_slice(self) -> None:
        """A slice of gradients has come, wherever it lies: whoever sends has all of the answer before."""
        if self._answered:
            self._memory.all_taken()
        self._answered = False

    def gradients(self, shared: train_pb2.SharedData) -> SharedSlice:
        """What the client has put there. Raises ProtocolViolation, InvalidSlice."""
        data = self._memory.gradients(shared.position, shared.size_bytes, shared.acknowledge)
        self._memory.taken(shared.taken)
        self._received += 1
        self._owed = self._owed or shared.acknowledge
        return data

    async def put(self, parameters: train_pb2.Parameters, data: Array, *, written: bool, last: bool) -> bool:
        """Puts ``data`` there, and where it is into its message; False: it must go in the message."""
        placed = await self._placed(parameters.offset, data, written=written, last=last)
        if placed is None:
            return False
        self._owed = False
        parameters.shared.CopyFrom(encode_shared(placed, self._received))
        return True

    def answered(self) -> None:
        """The last message of an answer is about to be sent."""
        self._answered = True

    async def _placed(self, offset: int, data: Array, *, written: bool, last: bool) -> Placed | None:
        """Writes data to shared memory, unless it has been ``written`` there; None: it must go in its message."""
        memory = self._memory
        if not memory.carries(data.nbytes):
            return None
        if memory.in_place:
            alone = self._encoder.dense == data.dtype and data.shape[0] == 1
            place = memory.place(data.nbytes, offset * data.itemsize, last=last) if alone else None
        else:
            place = await self._room(data.nbytes, last=last)
        if place is None:
            return None
        if not written:
            memory.parameters(place.position, data.nbytes).view(data.dtype).reshape(data.shape)[...] = data
        return Placed(place, data.nbytes)

    async def _room(self, size: int, *, last: bool) -> Place | None:
        """Waits until the client has taken enough of what is there, as long as it sends nothing that is large."""
        while (place := self._memory.place(size, 0, last=last)) is None:
            if not self._requests.may_read_ahead:
                return None
            request = await self._requests.ahead()
            if request is not None and request.message.WhichOneof("message") == "taken":
                self.hear(request.message)
                continue
            self._requests.keep(request)
            if request is not None and request.message.gradients.HasField("shared"):
                self._memory.taken(request.message.gradients.shared.taken)
        return place
