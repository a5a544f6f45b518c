"""A worker's place at a shared run, where others are attached too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import numpy.typing as npt

from gradwire.client.errors import ConnectionLost, RunRolledBack, WorkerConflict, WorkerForgotten
from gradwire.client.training.attachment import Attachment
from gradwire.client.transport.call_threads import begin
from gradwire.client.transport.retry import Attempts
from gradwire.client.transport.stream import TrainStream
from gradwire.v1 import train_pb2
from gradwire.wire.errors import GradwireError, LeaderBusy

PATIENCE_SECONDS = 2.0
"""How long a step may take that is to end before the run is closed."""

LEAVE_SECONDS = 2.0
"""How long it may take to say that this worker leaves, where there is no stream any more to say it on."""


class SharedAttachment(Attachment):
    """As `Attachment`, but that every outcome uses up its sequence, and only accepted contributions outlive the server.

    So sequences have gaps, and a ``last_sequence`` below ours says nothing: ``last_accepted_sequence`` does. The epoch
    rises when history changes (a write, a roll-back, lost steps), not when somebody attaches; and our parameters are
    not stale because others have stepped: their step and epoch, which go out with each contribution, say how old they
    are.
    """

    shared = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.last_accepted = 0
        """The last of our sequences that was accepted, as far as we know."""
        self._resumed = self.resumes
        # What an earlier process has sent was computed from parameters that this one has not: nothing is taken up.
        self.resumes = False
        self.leads = False
        self.leads_if_free = False
        """Whether nobody has asked for the lead: then another worker may have it."""
        self.ending = False
        """Whether somebody closes it, and waits until the thread that steps has seen that."""
        self.awaited = False
        """Whether the server may wait for this worker: it has attached, and not said that it leaves."""
        self.contested = False
        """Whether somebody else uses this worker's id, or has taken its lead: what it says would be of that one."""
        self._begun: grpc.Call | None = None
        """The call of the newest stream, which may wait for the server to take it up."""
        self._closed = False

    def close(self, *, leaves: bool = True) -> None:
        """As `Attachment.close`. It ends a step of another thread, which may wait for workers that never come."""
        if not self.owner.here:
            return
        while not self.lock.acquire(timeout=PATIENCE_SECONDS):
            self.ending = True
            stream, begun = self.stream, self._begun
            if stream is not None:
                stream.abandon()
            elif begun is not None:
                begin(begun.cancel)
        try:
            self.ending = False
            stream = self.stream
            told = stream is not None and not stream.ended
            super().close(leaves=leaves)
            if leaves and self.awaited and not (told or self.contested):
                self._say_that_it_leaves()
            self.awaited = self.awaited and not leaves
            self._closed = self._closed or leaves
        finally:
            self.lock.release()

    @property
    def given_up(self) -> bool:
        """Whether it has left, could not be had in the first place, or is that of the process that this one was forked
        from."""
        return self._closed or not self.owner.here

    def open(self, attempts: Attempts, *, resuming: bool, vector: npt.NDArray[Any] | None = None) -> TrainStream:
        """As `Attachment.open`."""
        try:
            return super().open(attempts, resuming=resuming, vector=vector)
        except BaseException:
            self._closed = not self.awaited
            raise

    def _train(self, requests: Iterator[bytes]) -> Any:
        self._begun = call = super()._train(requests)
        return call

    def drop(self) -> None:
        """As `Attachment.drop`; closing the connection must still close it."""
        super().drop()
        if self.awaited:
            self._attached.add(self)

    def _say_that_it_leaves(self) -> None:
        """On a stream for that alone: others would wait for a whole lease. What had waited is withdrawn."""
        message = train_pb2.Attach()
        message.CopyFrom(self.message)
        message.resumes, message.leads, message.takeover = 0, False, False
        message.shared_memory = message.lane = False
        with suppress(grpc.RpcError, GradwireError):  # then its lease has to end
            TrainStream(self.link.train, message, LEAVE_SECONDS).close(leaves=True)

    def check(self) -> None:
        """Raises ConnectionLost while it is being closed."""
        if self.ending:
            raise ConnectionLost(
                f"{self.message.run} was closed while worker {self.message.worker_id} waited for an answer",
                applied=None,
            )

    def _yields(self, failure: GradwireError) -> bool:
        self.check()
        if not (isinstance(failure, LeaderBusy) and self.message.leads and self.leads_if_free):
            return False
        self.message.leads = False  # nobody has asked for it here
        return True

    def _announce(self, resuming: bool) -> None:
        self.check()
        waits = resuming and self.sequence is not None
        self.message.resumes = self.sequence + 1 if waits and self.sequence is not None else 0
        if self.parameters.known:
            self.message.base_step = self.parameters.step_count
        else:
            self.message.ClearField("base_step")

    def _compare(self, attached: train_pb2.Attached, resuming: bool) -> None:
        self.leads = attached.leads
        self.awaited, self.contested, self._closed = True, False, False
        self.message.takeover = False  # it is one act: who has lost the lead since does not take it back on the way
        self._compare_accepted(attached, resuming)
        self._compare_answered(attached, resuming)
        known_epoch, self.epoch = self.epoch, attached.epoch
        if attached.epoch < known_epoch:
            self.parameters.stale = True
            raise self._rolled_back(
                attached,
                f"the server has epoch {attached.epoch} of the run, though {known_epoch} was acknowledged: values that "
                "had been written are lost. It began from a damaged snapshot, or from an older copy of its data "
                "directory; nothing was sent again",
            )
        if attached.epoch != self.parameters.epoch:
            self.parameters.stale = True  # somebody has written, put the run back, or steps were lost

    def _compare_accepted(self, attached: train_pb2.Attached, resuming: bool) -> None:
        """Raises RunRolledBack, WorkerForgotten."""
        known, last = self.last_accepted, attached.last_accepted_sequence
        if last >= known:
            return
        self.parameters.stale = True
        self.last_accepted = last  # a caller who decides to go on is judged by what the server has
        unresolved = self.unresolved or resuming
        self.unresolved = False
        if attached.perhaps_forgotten and attached.step >= self.parameters.step_count:
            raise WorkerForgotten(
                f"the server, at step {attached.step}, remembers nothing of worker {self.message.worker_id}: many "
                f"others have been there since it accepted contribution {known}",
                applied=None if unresolved else False,
            )
        raise self._rolled_back(
            attached,
            f"the server is at step {attached.step} and at contribution {last} of worker {self.message.worker_id}, but "
            f"it has accepted contribution {known} (this worker's parameters are of step "
            f"{self.parameters.step_count}); nothing was sent again",
            known,
        )

    def _compare_answered(self, attached: train_pb2.Attached, resuming: bool) -> None:
        """Raises WorkerConflict."""
        known, last = self.sequence, max(attached.last_sequence, attached.waiting_sequence)
        if known is None or self._resumed:
            self.sequence = max(known or 0, attached.last_sequence)
            self.last_accepted = attached.last_accepted_sequence
            self._resumed = self.unresolved = False
            return
        if last > known + 1 or (last == known + 1 and not self.unresolved):
            self.contested = True
            raise WorkerConflict(
                f"the server has had contribution {last} of worker {self.message.worker_id}; this client has sent none "
                f"after {known}. Another process uses the same worker_id",
                last_sequence=last,
            )
        if last == known + 1 and not resuming:
            self.sequence = last  # an abandoned one turned out to be answered
            self.last_accepted = max(self.last_accepted, attached.last_accepted_sequence)
        if not resuming:
            self.unresolved = False  # nothing of an abandoned one is left on the server

    def _rolled_back(
        self, attached: train_pb2.Attached, message: str, acknowledged: int | None = None
    ) -> RunRolledBack:
        return RunRolledBack(
            message,
            last_sequence=attached.last_accepted_sequence,
            acknowledged_sequence=self.last_accepted if acknowledged is None else acknowledged,
        )
