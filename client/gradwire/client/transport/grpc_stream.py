"""The messages of one Train call, by gRPC: out from a thread of gRPC's, in from a thread of its own."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import grpc

from gradwire.client.transport.call_threads import POLL_SECONDS, begin, take

STATUS_SECONDS = 10.0
"""For which the status of a stream whose lane has ended may stay away. It is sent at once."""
READ_AHEAD = 4
"""Answers that may wait for the caller; then the stream is not read, and flow control holds the server."""

TrainMethod = Callable[[Iterator[bytes]], Any]
"""Begins a Train call that sends serialized requests; its result iterates over serialized responses."""

Job = Iterable["bytes | None"]
"""Serialized messages to be sent, as they are made; None where the next one has to wait for `SharedMemory.wait`."""

MessagesOf = Callable[[Job], Iterator[bytes]]
"""Those of a job, one by one as the connection takes them, with what has to be said between them."""

Jobs = queue.SimpleQueue["Job | None"]
"""None: the end."""


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


class GrpcStream:
    """One call. gRPC pulls requests from a queue in its own thread, so reading and writing overlap: a client that wrote
    all slices before it read any would deadlock in flow control.

    Answers come through a queue too, so that the caller's thread never enters gRPC: see `call_threads`.
    """

    def __init__(self) -> None:
        self.end: BaseException | None = None
        """What has ended it."""
        self._jobs: Jobs = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each answer that may be read
        for _ in range(READ_AHEAD):
            self._room.put(None)
        self._call: Any = None  # once the thread has begun it
        self._over = False

    def begin(self, train: TrainMethod, messages: MessagesOf, on_end: Callable[[], object]) -> None:
        """Begins the call, in the thread that reads.

        Args:
            messages: is called in gRPC's thread.
            on_end: called when the call has ended, in the thread that reads.
        """
        begin(lambda: self._read(lambda: train(self._messages(messages)), on_end))

    def send(self, job: Job) -> None:
        """Hands messages to the thread that sends."""
        self._jobs.put(job)

    def finish(self) -> None:
        """Nothing more is sent once all that is queued has been."""
        self._jobs.put(None)

    def receive(self) -> bytes:
        """The next answer. Raises what has ended the call."""
        if self.end is not None and self._answers.empty():
            raise self.end  # whoever asks once more, after Ctrl-C perhaps, must not wait
        answer = take(self._answers)
        if isinstance(answer, BaseException):
            raise answer
        self._room.put(None)
        return answer

    def status(self) -> BaseException:
        """What ends the call, which is about to. Raises StreamEnded where it does not."""
        give_up_at = time.monotonic() + STATUS_SECONDS
        while self.end is None:
            if time.monotonic() > give_up_at:
                self.cancel()
                raise StreamEnded("the lane has ended, and the stream has not")
            with suppress(queue.Empty):
                self._answers.get(timeout=POLL_SECONDS)
        return self.end

    def cancel(self) -> None:
        """Ends the call as it is. Not in the user's thread: it enters gRPC."""
        self._over = True
        if self._call is not None:
            self._call.cancel()
        self._room.put(None)

    def _read(self, train: Callable[[], Any], on_end: Callable[[], object]) -> None:
        """Passes on what the server answers, as long as there is room, and the error that ends it."""
        try:
            self._call = call = train()
            if self._over:  # cancelled before there was a call
                call.cancel()
            while True:
                self._room.get()
                self._answers.put(next(call))
        except StopIteration:
            self.end = StreamEnded("the server ended the stream")
        except BaseException as error:  # for the caller's thread to raise
            self.end = error
        self._answers.put(self.end)
        on_end()

    def _messages(self, messages: MessagesOf) -> Iterator[bytes]:
        while (job := self._jobs.get()) is not None:
            yield from messages(job)
