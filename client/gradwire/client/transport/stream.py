"""One Train stream: messages out from a thread of gRPC's, messages in from a thread of its own.

On one host they may go by a lane, and then mostly from the caller's own thread, without any other.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from gradwire.client.transport.call_threads import POLL_SECONDS, begin, take
from gradwire.client.transport.lane import Lane
from gradwire.client.transport.shared_memory import SharedMemory
from gradwire.v1 import train_pb2
from gradwire.wire.encoding import SLICE_BYTES, Array
from gradwire.wire.envelope import Opened, open_response
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.shared import Bytes

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_SECONDS = 2.0
STATUS_SECONDS = 10.0
"""For which the status of a stream whose lane has ended may stay away. It is sent at once."""
READ_AHEAD = 4
"""Answers that may wait for the caller; then the stream is not read, and flow control holds the server."""

TrainMethod = Callable[[Iterator[bytes]], Any]
"""Begins a Train call that sends serialized requests; its result iterates over serialized responses."""


Jobs = queue.SimpleQueue[Iterable["bytes | None"] | None]
"""Messages to be sent, as they are made; None: the end."""

Accept = Callable[[train_pb2.Parameters, "bytes | memoryview | Bytes"], None]
"""Takes a part of an answer and copies its data."""

Wait = Callable[[train_pb2.Waiting], None]
"""Hears why there is no answer yet."""


class StreamEnded(grpc.RpcError):
    """Raised when a stream ended without a status that says why."""

    def __init__(self, details: str) -> None:
        super().__init__(details)
        self._details = details

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[()]:
        return ()


class TrainStream:
    """An attached stream. gRPC pulls requests from a queue in its own thread, so reading and writing overlap: a client
    that wrote all slices before it read any would deadlock in flow control.

    Answers come through a queue too, so that the caller's thread never enters gRPC: see `call_threads`.

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
        self._jobs: Jobs = queue.SimpleQueue()
        self._grpc_jobs = self._jobs
        self._queued = self._sent = 0  # jobs for a lane's sending thread, which there is from the first one on
        self._answers: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each answer that may be read
        for _ in range(READ_AHEAD):
            self._room.put(None)
        self._call: Any = None  # once the thread has begun it
        self._over = False
        self._end: BaseException | None = None
        self.send([train_pb2.TrainRequest(attach=attach).SerializeToString()])
        late = threading.Event()
        timer = None if timeout_seconds is None else threading.Timer(timeout_seconds, self._give_up, (late,))
        try:
            begin(lambda: self._read(train))
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

    def send(self, messages: Iterable[bytes | None], *, at_once: bool = False) -> None:
        """Hands serialized messages to the sending thread, which makes them one by one as the connection takes them;
        None where the next one has to wait for `SharedMemory.wait`.

        ``at_once``: it is not worth a thread; the server answers none of them before the last one has left.
        """
        lane = self.lane
        if lane is not None and at_once and self._queued == self._sent:
            self._send_here(lane, iter(messages))
            return
        if lane is not None:
            self._queued += 1
            if self._queued == 1:
                begin(lambda: self._send_by_lane(lane))
        self._jobs.put(messages)

    def _send_here(self, lane: Lane, messages: Iterator[bytes | None]) -> None:
        for message in messages:
            if message is None:
                self.send(messages)  # who waits for room has to read what the server says
                return
            lane.send(message)

    @property
    def slice_bytes(self) -> int:
        """Size of slices of gradients that go fastest."""
        return SLICE_BYTES if self.memory is None else self.memory.slice_bytes

    def receive(self) -> Opened[train_pb2.TrainResponse]:
        """The next message."""
        if self.lane is not None:
            return self._receive_by_lane()
        if self._end is not None and self._answers.empty():
            raise self._end  # whoever asks once more, after Ctrl-C perhaps, must not wait
        answer = take(self._answers)
        if isinstance(answer, BaseException):
            raise answer
        self._room.put(None)
        return _opened(answer)

    def _next_by_lane(self) -> bytes | None:
        """None: it is over. (Apart, so that no error's traceback keeps the lane.)"""
        lane = self.lane
        return None if lane is None else lane.receive()

    def _receive_by_lane(self) -> Opened[train_pb2.TrainResponse]:
        message = self._next_by_lane()
        if message is not None:
            return _opened(message)
        give_up_at = time.monotonic() + STATUS_SECONDS
        while self._end is None:  # the status says why
            if time.monotonic() > give_up_at:
                self._cancel()
                raise StreamEnded("the lane has ended, and the stream has not")
            with suppress(queue.Empty):
                self._answers.get(timeout=POLL_SECONDS)
        self.lane_broke = isinstance(self._end, StreamEnded)
        raise self._end

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
        return self._end is not None

    def close(self, *, leaves: bool = False) -> None:
        """Ends the stream in order and waits, briefly, until the server has given the run back.

        ``leaves``: a shared run's other workers need not wait for this one.
        """
        if leaves:
            self.send([train_pb2.TrainRequest(leave=train_pb2.Leave()).SerializeToString()], at_once=True)
        self._end_sending()
        timer = threading.Timer(CLOSE_TIMEOUT_SECONDS, self._cancel)
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
        begin(self._cancel)
        self._end_sending()
        self._let_go()

    def _end_sending(self) -> None:
        """When all that is queued has been sent."""
        self._grpc_jobs.put(None)
        if self.lane is not None:
            if self._queued:
                self._jobs.put(None)
            else:
                self.lane.finish()

    def _give_up(self, late: threading.Event) -> None:
        late.set()
        self._cancel()

    def _cancel(self) -> None:
        self._over = True
        if self._call is not None:
            self._call.cancel()
        self._room.put(None)

    def _read(self, train: TrainMethod) -> None:
        """Begins the call; passes on what the server answers, as long as there is room, and the error that ends it."""
        try:
            self._call = call = train(self._messages(self._grpc_jobs))
            if self._over:  # cancelled before there was a call
                call.cancel()
            while True:
                self._room.get()
                self._answers.put(next(call))
        except StopIteration:
            self._end = StreamEnded("the server ended the stream")
        except BaseException as error:  # for the caller's thread to raise
            self._end = error
        self._answers.put(self._end)
        lane = self.lane
        if lane is not None:
            lane.shut()  # its server may have been stopped, and would keep it open

    def _messages(self, jobs: Jobs) -> Iterator[bytes]:
        while (job := jobs.get()) is not None:
            yield from self._messages_of(job)

    def _messages_of(self, job: Iterable[bytes | None]) -> Iterator[bytes]:
        for message in job:
            if message is not None:
                yield message
            elif self.memory is not None:
                self.memory.wait()
            yield from self._owed()
        yield from self._owed()

    def _send_by_lane(self, lane: Lane) -> None:
        """In a thread of its own: what has to wait, or is made while others compute."""
        try:
            while (job := self._jobs.get()) is not None:
                for message in self._messages_of(job):
                    lane.send(message)
                self._sent += 1
            lane.finish()
        except BaseException:
            log.exception("a message to the server could not be made")
            self._cancel()

    def _owed(self) -> Iterator[bytes]:
        taken = None if self.memory is None else self.memory.owed()
        if taken is not None:
            yield train_pb2.TrainRequest(taken=taken).SerializeToString()

    def _take_offers(self, target: str, vector: Array | None) -> None:
        """Takes what the server has offered with the attachment, as far as that can be had."""
        lane = self._lane_to(target)
        self.memory = self._mapped(vector, lane)
        if lane is not None:
            self._move(lane)

    def _lane_to(self, target: str) -> Lane | None:
        if not self.attached.HasField("lane"):
            return None
        try:
            return Lane(target, self.attached.lane)
        except OSError as error:
            log.info("no lane to the server: %s", error)
            return None

    def _move(self, lane: Lane) -> None:
        """Says that this was the last message through gRPC. What is queued from now on is for the lane."""
        self.send([train_pb2.TrainRequest(moved=train_pb2.Moved()).SerializeToString()])
        self._jobs = queue.SimpleQueue()
        self.lane = lane
        if self._end is not None:
            lane.shut()

    def _mapped(self, vector: Array | None, lane: Lane | None) -> SharedMemory | None:
        """Maps the memory that the server has offered, and says so."""
        if not self.attached.HasField("region"):
            return None
        memory = None
        try:
            memory = SharedMemory(self.attached.region, vector, -1 if lane is None else lane.take_file())
        except (OSError, ValueError) as error:
            log.warning("no memory is shared with the server, values go through gRPC: %s", error)
        mapped = train_pb2.Mapped(
            proof=b"" if memory is None else memory.proof, in_place=memory is not None and memory.in_place
        )
        self.send([train_pb2.TrainRequest(mapped=mapped).SerializeToString()])
        return memory

    def _let_go(self) -> None:
        if self.memory is not None:
            self.memory.close()
        lane, self.lane = self.lane, None  # what still comes is the end of the stream
        if lane is not None:
            lane.shut()


def _opened(serialized: bytes) -> Opened[train_pb2.TrainResponse]:
    try:
        return open_response(serialized)
    except DecodeError as error:
        raise ProtocolViolation(f"the server sent what is no TrainResponse: {error}", applied=None) from None
