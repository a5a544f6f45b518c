"""A worker's place at a run: the stream that it has now, or none, and how far its blocks have come."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import numpy.typing as npt

from gradwire.client.encodings.selection import Encodings
from gradwire.client.errors import (
    ConnectionClosed,
    RunRolledBack,
    ServerTooOld,
    WorkerConflict,
    WorkerForgotten,
    translate,
)
from gradwire.client.overrides import override_messages
from gradwire.client.training.early_gradients import EarlyGradients, Source
from gradwire.client.training.local_parameters import LocalParameters
from gradwire.client.training.logged import Logged, Parts, scalar_messages
from gradwire.client.transport.link import Link
from gradwire.client.transport.owner import Owner
from gradwire.client.transport.retry import Attempts, RetryPolicy, may_pass
from gradwire.client.transport.stream import TrainStream
from gradwire.v1 import service_pb2, train_pb2
from gradwire.wire.errors import GradwireError, RunNotFound

UNDERSTANDS: tuple[train_pb2.Feature.ValueType, ...] = (
    train_pb2.FEATURE_SHARED_RUN,
    train_pb2.FEATURE_REASONED_WAIT,
)
"""What this client knows how to take, see ``gradwire.v1.Feature``. Whoever teaches it something adds it here, and not
before: it would take "not applied" for "applied"."""


LAST_WORDS_SECONDS = 5.0
"""How long it may take to say what is left to be logged when a run is closed."""

log = logging.getLogger(__name__)


class Attachment:
    """Attaches when it is asked for a stream and has none. Whoever uses it holds ``lock``. For a run of one worker.

    The order of assignments matters here: Ctrl-C may come between any two of them.

    Args:
        message: how every stream begins.
        epoch: of the run, when it was last heard of.
        last_sequence: see `RunOptions`.
        attached: those of a connection that have a stream, or values that wait; closing it closes them.
    """

    shared = False
    """Whether others are attached beside this one."""

    def __init__(
        self,
        link: Link,
        message: train_pb2.Attach,
        epoch: int,
        last_sequence: int | None,
        parameters: LocalParameters,
        encodings: Encodings,
        attached: set[Attachment],
    ) -> None:
        self.owner = Owner("this run")
        self.lock = threading.RLock()
        self.message = message
        self.epoch = epoch
        self.link = link
        self.parameters = parameters
        self.encodings = encodings
        self.early = EarlyGradients(parameters.layout, encodings.gradients.early_dtype or parameters.vector.dtype)
        self.stream: TrainStream | None = None
        self.sequence = last_sequence
        """The last block that was acknowledged."""
        self.resumes = last_sequence is not None
        """Whether an earlier process may have sent the block after it."""
        self.unresolved = self.resumes
        """Whether the block after it may have been sent, and its outcome is not known."""
        self.logged = Logged()
        """What waits for the next block."""
        self.last_log = 0
        """Number of the last LogScalars of this worker that has counted."""
        self.supports: frozenset[int] | None = None
        """What the server knows, see ``gradwire.v1.Attached.supports``; None: it has not said yet."""
        self.token = 0
        """`Link.token` before the stream was begun."""
        self.leads = True
        """Whether this worker may change hyperparameters."""
        self._attached = attached

    def open(self, attempts: Attempts, *, resuming: bool, vector: npt.NDArray[Any] | None = None) -> TrainStream:
        """The attached stream; attaches where there is none.

        Args:
            resuming: a block of ours may have been applied.
            vector: see `SharedMemory`.
        """
        while self.stream is None:
            try:
                self.token = self.link.token
                self._announce(resuming)
                stream = TrainStream(self._train, self.message, attempts.seconds_left, vector, self.link.target)
            except ConnectionClosed as error:
                error.applied = None if resuming else False
                raise
            except grpc.RpcError as error:
                failure = translate(error, self.link.target)
                failure.applied = None if resuming else False  # of the step; the server speaks of the attachment
                if self._yields(failure):
                    continue
                if isinstance(failure, RunNotFound):
                    raise failure.within(f"the last step this client knows is {self.parameters.step_count}") from None
                attempts.pause_for(failure, transient=may_pass(error, failure), token=self.token)
                continue
            self.stream = stream
            self.supports = frozenset(stream.attached.supports)
            self.last_log = stream.attached.last_log
            self._attached.add(self)
            if stream.attached.HasField("region") and stream.memory is None:
                self.message.shared_memory = False  # it will not work the next time either
            if stream.attached.HasField("lane") and stream.lane is None:
                self.message.lane = False
            self.encodings.begin_stream()
            try:
                self._compare(stream.attached, resuming)
            except BaseException:
                self.drop()
                raise
        return self.stream

    def require_usable(self) -> None:
        """All that a run is asked begins with this. Raises ForkedProcess, ConnectionClosed."""
        self.owner.check()
        self.link.check()

    def _train(self, requests: Iterator[bytes]) -> Any:
        """See `TrainMethod`."""
        return self.link.train(requests)

    def _yields(self, failure: GradwireError) -> bool:
        """Whether to try again at once, without what this is a refusal of."""
        return False

    def _announce(self, resuming: bool) -> None:
        """Puts into the message what has changed since the last time; see `open`."""

    def _compare(self, attached: train_pb2.Attached, resuming: bool) -> None:
        """What is known here with what the server says. Raises RunRolledBack, WorkerForgotten, WorkerConflict."""
        known_epoch, self.epoch = self.epoch, attached.epoch
        if self.epoch != known_epoch + 1:
            self.parameters.stale = True  # somebody else has attached or written since
        self._compare_sequences(attached, resuming)
        self._compare_epochs(known_epoch)

    def _compare_sequences(self, attached: train_pb2.Attached, resuming: bool) -> None:
        """Ours with the last one that the server has applied. Raises RunRolledBack, WorkerForgotten, WorkerConflict."""
        known, last = self.sequence, attached.last_sequence
        if known is None:
            self.sequence = last
        elif last < known:
            self.parameters.stale = True
            self.sequence = last  # a caller who decides to go on starts from what the server has
            unresolved = self.unresolved or resuming
            self.unresolved = self.resumes = False
            if attached.perhaps_forgotten and attached.step >= self.parameters.step_count:
                raise WorkerForgotten(
                    f"the server, at step {attached.step}, remembers nothing of worker {self.message.worker_id}: many "
                    f"others have been there since it acknowledged block {known} (step {self.parameters.step_count})",
                    applied=None if unresolved else False,
                )
            raise RunRolledBack(
                f"the server is at block {last} of worker {self.message.worker_id}, but it has acknowledged block "
                f"{known} (step {self.parameters.step_count}); nothing was sent again",
                last_sequence=last,
                acknowledged_sequence=known,
            )
        elif last > known + 1 or (last == known + 1 and not self.unresolved):
            raise WorkerConflict(
                f"the server has applied block {last} of worker {self.message.worker_id}; this client has sent none "
                f"after {known}. Another process uses the same worker_id",
                last_sequence=last,
            )
        elif last == known + 1 and not resuming:
            self.sequence = last  # an abandoned block turned out to be applied
            self.unresolved = False

    def _compare_epochs(self, known: int) -> None:
        """The ``known`` one with ours, which must be a later one. Raises RunRolledBack."""
        if self.epoch <= known and self.sequence is not None:
            raise RunRolledBack(
                f"the server has given this attachment epoch {self.epoch} of the run, though {known} was acknowledged: "
                "values that had been written are lost. It began from a damaged snapshot, or from an older copy of its "
                "data directory; nothing was sent again",
                last_sequence=self.sequence,
                acknowledged_sequence=self.sequence,
            )

    def send_early(
        self,
        sources: Mapping[str, Source],
        overrides: Mapping[int, Mapping[str, Any]] | None,
        contribution: train_pb2.Contribution | None = None,
    ) -> bool:
        """See `Run.send_ahead`."""
        if self.encodings.gradients.early_dtype is None:
            return False
        if self.stream is None or self.unresolved or self.parameters.stale or self.sequence is None:
            return False
        layout = self.parameters.layout
        indexed = {layout.index[name]: source for name, source in sources.items()}
        guess = override_messages(layout.groups, None, overrides)
        self.stream.send(self.early.messages(self.sequence + 1, indexed, guess, self.stream.memory, contribution))
        return True

    def require_series(self) -> None:
        """Raises ServerTooOld where the server is known to have no series: it would pass over what is logged."""
        if self.supports is not None and train_pb2.FEATURE_SERIES not in self.supports:
            raise ServerTooOld(
                f"the server at {self.link.target} knows no series of scalars (it does not say FEATURE_SERIES), so "
                "nothing can be logged there; expected a newer server, or steps without log",
                applied=False,
            )

    def log(self, parts: Parts) -> None:
        """Keeps values for the next block. Raises ServerTooOld, and ValueError for too many series."""
        self.require_series()
        self.logged.add(parts)
        self._attached.add(self)

    def _log_what_is_left(self) -> None:
        """Values that no block has taken along. Raises nothing: whoever closes a run has no use for it."""
        if not self.logged:
            return
        parts = self.logged.take()
        try:
            attempts = Attempts(RetryPolicy(deadline_seconds=LAST_WORDS_SECONDS), self.link)
            self.open(attempts, resuming=self.resumes)  # which says what the next number is, and the epoch
            self.require_series()
            request = service_pb2.LogScalarsRequest(
                name=self.message.run,
                run_uid=self.message.run_uid,
                worker_id=self.message.worker_id,
                number=self.last_log + 1,
                epoch=self.epoch,
                scalars=scalar_messages(parts, self.parameters.step_count - 1, 1),
            )
            attempts.until_done(lambda: self.link.stub.LogScalars(request, timeout=LAST_WORDS_SECONDS))
            self.last_log += 1
        except GradwireError as error:
            log.warning("%s: the last values of %s were not logged: %s", self.message.run, ", ".join(parts), error)

    def drop(self) -> None:
        """Without the stream, whatever is on its way."""
        self.early.forget()
        if self.stream is not None:
            if self.stream.lane_broke:
                self.message.lane = False
            self.stream.abandon()
            self._without_stream()

    def close(self, *, leaves: bool = True) -> None:
        """Gives the run back to the server. Does nothing in a forked process, whose copy of the lock may be held.

        ``leaves``: this worker is not about to attach again.
        """
        if not self.owner.here:
            return
        with self.lock:
            self.early.forget()
            if leaves:
                self._log_what_is_left()
            if self.stream is not None:
                self.stream.close(leaves=leaves and self.shared)
            self._without_stream()

    def _without_stream(self) -> None:
        self.stream = None
        if not self.logged:  # else closing the connection closes it, which sends what waits
            self._attached.discard(self)
