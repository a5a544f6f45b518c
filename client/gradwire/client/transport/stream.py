"""One Train stream: its messages by gRPC, or, on one host, by a lane, and its values in memory that is shared.

By a lane they go mostly from the caller's own thread, without any other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import grpc
from google.protobuf.message import DecodeError

from gradwire.client.transport.call_threads import begin, in_own_thread
from gradwire.client.transport.grpc_stream import GrpcStream, Job, StreamEnded, TrainMethod
from gradwire.client.transport.lane import Lane
from gradwire.client.transport.lane_sender import LaneSender
from gradwire.client.transport.shared_memory import SharedMemory
from gradwire.v1 import train_pb2
from gradwire.wire.encoding import SLICE_BYTES, Array
from gradwire.wire.envelope import Opened, open_response
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.shared import Bytes

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_SECONDS = 2.0

Accept = Callable[[train_pb2.Parameters, "bytes | memoryview | Bytes"], None]
"""Takes a part of an answer and copies its data."""

Wait = Callable[[train_pb2.Waiting], None]
"""Hears why there is no answer yet."""


class TrainStream:
    """An attached stream.

    Args:
        vector: see `SharedMemory`.
        target: that ``train`` calls; see `Lane`.

    Raises grpc.RpcError, also from the constructor, which waits for the attachment: up to ``timeout_seconds``, or as
    long as the connection lasts.
    """

    def __init__(
        self,
        train: TrainMethod,
        attach: train_pb2.Attach,
        timeout_seconds: float | None = None,
        vector: Array | None = None,
        target: str = "",
    ) -> None:
        self.memory: SharedMemory | None = None
        """Shared with the server; None: all values go in messages."""
        self.lane: Lane | None = None
        """By which all messages go that follow the attachment; None: through gRPC."""
        self.lane_broke = False
        """Whether it has ended by itself: then it was of no use."""
        self._sender: LaneSender | None = None  # there is one as long as there is a lane, or longer
        self._grpc = GrpcStream()
        self.send([train_pb2.TrainRequest(attach=attach).SerializeToString()])
        late = threading.Event()
        timer = None if timeout_seconds is None else threading.Timer(timeout_seconds, self._give_up, (late,))
        try:
            self._grpc.begin(train, self._messages_of, self._shut_lane)
            if timer is not None:
                timer.start()
            self.attached = self.receive().message.attached
            self._take_offers(target, vector)
        except BaseException as error:
            self.abandon()
            if late.is_set() and isinstance(error, grpc.RpcError):
                raise StreamEnded(f"the server did not answer within {timeout_seconds:.1f} s") from None
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def send(self, messages: Job, *, at_once: bool = False) -> None:
        """Hands serialized messages to the sending thread, which makes them one by one as the connection takes them;
        None where the next one has to wait for `SharedMemory.wait`.

        ``at_once``: it is not worth a thread; the server answers none of them before the last one has left.
        """
        sender = self._sender
        if sender is None:
            self._grpc.send(messages)
        else:
            sender.send(messages, at_once=at_once)

    @property
    def slice_bytes(self) -> int:
        """Size of slices of gradients that go fastest."""
        return SLICE_BYTES if self.memory is None else self.memory.slice_bytes

    def receive(self) -> Opened[train_pb2.TrainResponse]:
        """The next message."""
        if self.lane is None:
            return _opened(self._grpc.receive())
        message = self._next_by_lane()
        if message is not None:
            return _opened(message)
        status = self._grpc.status()  # says why
        self.lane_broke = isinstance(status, StreamEnded)
        raise status

    def _next_by_lane(self) -> bytes | None:
        """None: it is over. (Apart, so that no error's traceback keeps the lane.)"""
        lane = self.lane
        return None if lane is None else lane.receive()

    def collect(self, sequence: int, accept: Accept, wait: Wait | None = None) -> train_pb2.Receipt:
        """Passes the answer to block ``sequence`` on, message by message, and returns its receipt. Waits for it as long
        as the stream lasts."""
        memory = self.memory
        if memory is not None:
            memory.read_answers(True)
        while True:
            message, data = self.receive()
            if memory is not None and message.HasField("taken"):
                memory.taken(message.taken.slices)
                continue
            if message.HasField("waiting"):
                if wait is not None:
                    wait(message.waiting)
                continue
            parameters = message.parameters
            if parameters.sequence != sequence:
                raise ProtocolViolation(
                    f"the server answered block {parameters.sequence}; expected {sequence}", applied=None
                )
            if memory is not None and parameters.HasField("shared"):
                accept(parameters, memory.parameters(parameters.shared, parameters.offset))
                if memory.received(parameters.shared):
                    self.send(())  # the sending thread may have nothing else to do
            elif data:
                accept(parameters, data)
            if parameters.HasField("receipt"):
                if memory is not None:
                    memory.read_answers(False)
                    memory.all_taken()
                return parameters.receipt

    @property
    def ended(self) -> bool:
        """Whether the server has ended it, or it is broken."""
        return self._grpc.end is not None

    def close(self, *, leaves: bool = False) -> None:
        """Ends the stream in order and waits, briefly, until the server has given the run back.

        ``leaves``: a shared run's other workers need not wait for this one.
        """
        if leaves:
            self.send([train_pb2.TrainRequest(leave=train_pb2.Leave()).SerializeToString()], at_once=True)
        self._end_sending()
        timer = threading.Timer(CLOSE_TIMEOUT_SECONDS, self._grpc.cancel)
        timer.start()
        try:
            while True:
                self.receive()
        except grpc.RpcError:
            pass  # the end, or it was broken already
        finally:
            timer.cancel()
            self._let_go()

    def abandon(self) -> None:
        """Drops the stream as it is."""
        begin(self._grpc.cancel)
        self._end_sending()
        self._let_go()

    def _end_sending(self) -> None:
        """When all that is queued has been sent."""
        self._grpc.finish()
        if self._sender is not None:
            self._sender.finish()

    def _give_up(self, late: threading.Event) -> None:
        late.set()
        self._grpc.cancel()

    def _messages_of(self, job: Job) -> Iterator[bytes]:
        for message in job:
            if message is not None:
                yield message
            elif self.memory is not None:
                self.memory.wait()
            yield from self._owed()
        yield from self._owed()

    def _owed(self) -> Iterator[bytes]:
        taken = None if self.memory is None else self.memory.owed()
        if taken is not None:
            yield train_pb2.TrainRequest(taken=taken).SerializeToString()

    def _take_offers(self, target: str, vector: Array | None) -> None:
        """Takes what the server has offered with the attachment, as far as that can be had.

        In a thread of its own: in this one Ctrl-C may come between a file descriptor and the object that closes it.
        """
        lane, self.memory = in_own_thread(lambda: self._offered(target, vector))
        if self.attached.HasField("region"):
            self._say_mapped(self.memory)
        if lane is not None:
            self._move(lane)

    def _offered(self, target: str, vector: Array | None) -> tuple[Lane | None, SharedMemory | None]:
        lane = self._lane_to(target)
        return lane, self._mapped(vector, lane)

    def _lane_to(self, target: str) -> Lane | None:
        if not self.attached.HasField("lane"):
            return None
        try:
            return Lane(target, self.attached.lane)
        except OSError as error:
            log.info("no lane to the server: %s", error)
            return None

    def _move(self, lane: Lane) -> None:
        """Says that this was the last message through gRPC. What is sent from now on is for the lane."""
        self.send([train_pb2.TrainRequest(moved=train_pb2.Moved()).SerializeToString()])
        self._sender = LaneSender(lane, self._messages_of, self._grpc.cancel)
        self.lane = lane
        if self._grpc.end is not None:
            lane.shut()

    def _mapped(self, vector: Array | None, lane: Lane | None) -> SharedMemory | None:
        """Maps the memory that the server has offered."""
        if not self.attached.HasField("region"):
            return None
        try:
            return SharedMemory(self.attached.region, vector, -1 if lane is None else lane.take_file())
        except (OSError, ValueError) as error:
            log.warning("no memory is shared with the server, values go through gRPC: %s", error)
            return None

    def _say_mapped(self, memory: SharedMemory | None) -> None:
        mapped = train_pb2.Mapped(
            proof=b"" if memory is None else memory.proof, in_place=memory is not None and memory.in_place
        )
        self.send([train_pb2.TrainRequest(mapped=mapped).SerializeToString()])

    def _shut_lane(self) -> None:
        """The call is over. The lane's server may have been stopped, and would keep it open."""
        lane = self.lane
        if lane is not None:
            lane.shut()

    def _let_go(self) -> None:
        if self.memory is not None:
            self.memory.close()
        self._shut_lane()
        self.lane = self._sender = None  # what still comes is the end of the stream


def _opened(serialized: bytes) -> Opened[train_pb2.TrainResponse]:
    try:
        return open_response(serialized)
    except DecodeError as error:
        raise ProtocolViolation(f"the server sent what is no TrainResponse: {error}", applied=None) from None
