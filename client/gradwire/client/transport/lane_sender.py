"""Messages out by a lane: from the caller's own thread where they can go at once, and else from one of their own."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterator

from gradwire.client.transport.call_threads import begin
from gradwire.client.transport.grpc_stream import Job, Jobs, MessagesOf
from gradwire.client.transport.lane import Lane

log = logging.getLogger(__name__)


class LaneSender:
    """Of one lane. There is no thread before the first job that needs one.

    Args:
        messages: is called in the thread that sends.
        on_failure: called there when one of them could not be made.
    """

    def __init__(self, lane: Lane, messages: MessagesOf, on_failure: Callable[[], object]) -> None:
        self._lane = lane
        self._messages_of = messages
        self._on_failure = on_failure
        self._jobs: Jobs = queue.SimpleQueue()
        self._queued = self._sent = 0

    def send(self, job: Job, *, at_once: bool) -> None:
        """See `TrainStream.send`."""
        if at_once and self._queued == self._sent:
            self._send_here(iter(job))
            return
        self._queued += 1
        if self._queued == 1:
            begin(self._send_queued)
        self._jobs.put(job)

    def finish(self) -> None:
        """Nothing more is sent once all that is queued has been."""
        if self._queued:
            self._jobs.put(None)
        else:
            self._lane.finish()

    def _send_here(self, messages: Iterator[bytes | None]) -> None:
        for message in messages:
            if message is None:
                self.send(messages, at_once=False)  # who waits for room has to read what the server says
                return
            self._lane.send(message)

    def _send_queued(self) -> None:
        """In a thread of its own: what has to wait, or is made while others compute."""
        try:
            while (job := self._jobs.get()) is not None:
                for message in self._messages_of(job):
                    self._lane.send(message)
                self._sent += 1
            self._lane.finish()
        except BaseException:
            log.exception("a message to the server could not be made")
            self._on_failure()
