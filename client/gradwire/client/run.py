"""A run as its client sees it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from gradwire.client.calls import snapshots
from gradwire.client.calls.remote_values import RemoteValues, pack_state
from gradwire.client.calls.snapshots import SnapshotInfo
from gradwire.client.encodings import flat_vector
from gradwire.client.encodings.block import BlockData, block_messages, gradient_rows, override_messages
from gradwire.client.encodings.selection import Data, DeltaParameters, encodings_of
from gradwire.client.errors import RunRolledBack, WorkerConflict, translate
from gradwire.client.optimizers import Adam
from gradwire.client.options import Receipt, RunOptions, decode_receipt, encoding_of
from gradwire.client.training.early_gradients import Ahead, Source
from gradwire.client.transport.retry import Attempts, may_pass
from gradwire.client.transport.stream import TrainMethod, TrainStream
from gradwire.v1 import run_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.encoding import Array, state_dtype
from gradwire.wire.errors import Fenced, InternalError, RunNotFound
from gradwire.wire.layout import Layout, Range
from gradwire.wire.service import is_local

_RETURNS = {
    "last": train_pb2.RETURNS_LAST,
    "trajectory": train_pb2.RETURNS_TRAJECTORY,
    "none": train_pb2.RETURNS_NONE,
}


class Run:
    """Parameters in ``params``; `step` sends gradients and updates them in place. Made by `Server`; methods take turns.

    ``stale`` is true after a failure in the middle of a step: ``params`` may then mix old and new values, and the next
    step reads them anew first.
    """

    def __init__(
        self,
        stub: service_pb2_grpc.OptimizerServiceStub,
        train: TrainMethod,
        target: str,
        message: run_pb2.Run,
        options: RunOptions,
        attached: set[Run],
        params: npt.NDArray[Any] | None = None,
    ) -> None:
        spec = message.spec
        self.name = spec.name.removeprefix("runs/")
        self.layout = Layout([[(t.name, tuple(t.shape)) for t in group.tensors] for group in spec.groups])
        self.dtype = state_dtype(spec.dtype)
        self.server_instance = message.server_instance
        self.step_count = message.step
        self.last_receipt: Receipt | None = None
        self.stale = False
        self.refreshes = 0
        """How often all of ``params`` have been read anew."""
        self.slots = tuple(message.slots)
        self._train = train
        self._target = target
        self._options = options
        self._attached = attached  # the connection's runs that hold a stream; it closes them when it is closed
        self._lock = threading.RLock()
        self._attach = train_pb2.Attach(
            run=spec.name,
            worker_id=options.worker_id or f"worker-{uuid.uuid4().hex}",
            takeover=options.takeover,
            gradient_encoding=encoding_of(options.gradient_encoding),
            parameter_encoding=encoding_of(options.parameter_encoding),
            run_uid=message.uid,
            shared_memory=bool(options.shared_memory) and is_local(target),
        )
        self._encoder, self._decoder = encodings_of(self._attach, self.layout, self.dtype)
        self._flat = np.empty(self.layout.elements, self.dtype) if params is None else params
        self._incoming = np.empty_like(self._flat) if options.double_buffer else self._flat
        self.params: dict[str, npt.NDArray[Any]] = flat_vector.views(self.layout, self._flat)
        self._values = RemoteValues(
            stub, target, spec.name, message.uid, self.layout, self.dtype, self.slots, options.retry
        )
        self._epoch = message.epoch
        self._ahead = Ahead(self.layout, self._encoder.ahead or self.dtype)
        self._stream: TrainStream | None = None
        self._sequence = options.last_sequence  # the last block that was acknowledged
        self._resumes = options.last_sequence is not None  # an earlier process may have sent the block after it
        self._unresolved = self._resumes  # the block after it may have been sent, and its outcome is not known
        self._behind: set[int] = set()  # tensors of which the server has newer values that nobody asked for
        memory = self._open_stream(self._attempts(), resuming=self._resumes, vector=self._movable()).memory
        if memory is not None and memory.in_place:
            self._flat = self._incoming = memory.move(self._flat)
            self.params = flat_vector.views(self.layout, self._flat)
        if params is None:
            self.refresh()

    # --- steps ---------------------------------------------------------------------------------------------------

    @property
    def shares_memory(self) -> bool:
        """Whether values travel through memory that is shared with the server, at present."""
        return self._stream is not None and self._stream.memory is not None

    @property
    def worker_id(self) -> str:
        """This worker's id."""
        return self._attach.worker_id

    @property
    def last_sequence(self) -> int:
        """Number of the last block that has been answered; keep it, with `worker_id`, to go on after a restart."""
        assert self._sequence is not None
        return self._sequence

    def step(
        self,
        grads: Mapping[str, Any],
        *,
        lr: float | Sequence[float] | None = None,
        overrides: Mapping[int, Mapping[str, Any]] | None = None,
        ahead: Collection[str] = (),
    ) -> Receipt:
        """One optimizer step; ``params`` hold the new values when it returns.

        Args:
            grads: name -> array of the tensor's shape. A tensor that is missing or None stays as it is, its t too.
            lr: a new learning rate from this step on, for all groups or one for each.
            overrides: group index -> new ``lr``, ``betas``, ``eps``, ``weight_decay``, ``bounds`` from this step on.
            ahead: tensors whose gradients `send_ahead` was given and which have not changed since.

        Raises ValueError or TypeError for malformed gradients (nothing is sent), GradwireError as the error table says.
        """
        with self._lock:
            header = train_pb2.BlockHeader(
                steps=1, returns=train_pb2.RETURNS_LAST, overrides=override_messages(self.layout.groups, lr, overrides)
            )
            vouched = frozenset(self.layout.index[name] for name in ahead)
            return self._block(header, gradient_rows(self.layout, grads, None), None, vouched)

    def send_ahead(
        self, sources: Mapping[str, Source], overrides: Mapping[int, Mapping[str, Any]] | None = None
    ) -> bool:
        """Sends gradients of the next `step` now, in the background, while others are still being computed.

        `step` must be given all gradients all the same, and may name in ``ahead`` those that it need not send again. A
        tensor sent a second time replaces the first. Nothing is applied before `step`, and `discard_ahead`, or the end
        of this process, forgets what has left.

        Args:
            sources: name -> function that returns the gradient, flat, ``[1, size]``; called in another thread.
            overrides: those that `step` will be given, as far as is known: with them the server computes ahead. They
                count in the first call of a step only, and bind nobody.

        Returns False, and sends nothing, while there is no connection: `step` will repair that. So with INT8.
        """
        with self._lock:
            if self._encoder.ahead is None:
                return False
            if self._stream is None or self._unresolved or self.stale or self._sequence is None:
                return False
            indexed = {self.layout.index[name]: source for name, source in sources.items()}
            guess = override_messages(self.layout.groups, None, overrides)
            messages = self._ahead.messages(self._sequence + 1, indexed, guess, self._stream.memory)
            self._stream.send(messages)
            return True

    def hold(self) -> None:
        """Attaches now, where there is no stream, rather than with the next step."""
        with self._lock:
            self._open_stream(self._attempts(), resuming=self._resumes)

    def discard_ahead(self) -> None:
        """Forgets what `send_ahead` has sent."""
        with self._lock:
            self._ahead.forget()

    def step_many(
        self,
        grads: Mapping[str, Any],
        *,
        returns: str = "last",
        lr: float | Sequence[float] | None = None,
        overrides: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """K steps, applied strictly one after another, in one exchange; the receipt is in ``last_receipt``.

        Args:
            grads: name -> array ``[K, *shape]``, the same K for all.
            returns: ``"last"``: name -> ``[*shape]`` after the block. ``"trajectory"``: name -> ``[K, *shape]``, the
                parameters after each step. ``"none"``: nothing; ``params`` keep old values until `refresh` or `step`.

        Raises as `step` does.
        """
        if returns not in _RETURNS:
            raise ValueError(f"returns is {returns!r}; expected one of {', '.join(map(repr, _RETURNS))}")
        if returns == "trajectory" and isinstance(self._decoder, DeltaParameters):
            raise ValueError(
                "returns is 'trajectory', which parameter_encoding='int8' does not have; "
                "expected 'last' or 'none', or another encoding"
            )
        with self._lock:
            arrays = {name: flat_vector.as_array(name, value) for name, value in grads.items() if value is not None}
            counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
            if len(counts) != 1 or 0 in counts:
                raise ValueError(f"the gradients have {sorted(counts)} rows; expected the same K >= 1 for all tensors")
            steps = counts.pop()
            header = train_pb2.BlockHeader(
                steps=steps, returns=_RETURNS[returns], overrides=override_messages(self.layout.groups, lr, overrides)
            )
            rows = gradient_rows(self.layout, arrays, steps)
            trajectory = np.empty((steps, self.layout.elements), self.dtype) if returns == "trajectory" else None
            self._block(header, rows, trajectory)
            if returns == "none":
                return {}
            if trajectory is None:
                return {name: view.copy() for name, view in self.params.items()}
            return {t.name: trajectory[:, t.start : t.stop].reshape(steps, *t.shape) for t in self.layout.tensors}

    def _block(
        self,
        header: train_pb2.BlockHeader,
        rows: list[Array | None],
        trajectory: npt.NDArray[Any] | None,
        ahead: frozenset[int] = frozenset(),
    ) -> Receipt:
        """Sends one block, exactly once, and takes its answer.

        The order of the assignments matters: Ctrl-C may come between any two of them, and the next step must still do
        the right thing.
        """
        # Of a gradient that lies where the answer goes, parts would be sent that the answer has overwritten.
        rows = [row if row is None or not np.may_share_memory(row, self._incoming) else row.copy() for row in rows]
        absent = frozenset(index for index, row in enumerate(rows) if row is None)
        present = set(range(len(rows))) - absent
        header.absent_tensors.extend(sorted(absent))
        ranges = self.layout.present_ranges(absent)
        answered = header.returns != train_pb2.RETURNS_NONE
        if self._unresolved:
            self._drop_stream()  # a step was interrupted; what its stream still brings is not for this one
        if not answered:
            self._behind |= present

        def accept(reply: train_pb2.Parameters, data: Data) -> None:
            self.stale = True  # until the receipt, the arrays mix old and new
            if trajectory is None and reply.HasField("shared") and in_place:
                return  # that is where they are
            values = self._decoder.take(reply, data)
            columns = slice(reply.offset, reply.offset + values.shape[1])
            if trajectory is None:
                self._incoming[columns] = values[0]
            else:
                trajectory[reply.first_step : reply.first_step + reply.steps, columns] = values

        attempts = self._attempts()
        sent = self._resumes
        block: BlockData | None = None
        while True:
            stream = self._open_stream(attempts, resuming=sent)
            # Only now, when no older stream of ours can change anything any more.
            if self.stale or (answered and self._behind & absent):
                self._refresh(attempts)
            if trajectory is not None and absent:
                trajectory[:] = self._flat  # tensors without a gradient keep their values
            in_place = stream.memory is not None and stream.memory.in_place
            assert self._sequence is not None
            sequence = self._sequence + 1
            try:
                self._unresolved = sent = True
                if stream.attached.last_sequence == sequence:  # applied before the connection broke
                    again = train_pb2.Gradients(sequence=sequence, last=True)
                    stream.send([train_pb2.TrainRequest(gradients=again).SerializeToString()])
                else:
                    there = self._ahead.tensors & ahead & present  # none, where the stream is a new one
                    header.deferred = bool(there)
                    if not there:
                        self._ahead.forget()
                    missing = self.layout.present_ranges(absent | there) if there else ranges
                    block = self._encoder.block(rows, missing, header.steps, block, stream.slice_bytes)
                    stream.send(block_messages(sequence, header, block, begun=header.deferred, memory=stream.memory))
                receipt = stream.collect(sequence, accept)
                break
            except grpc.RpcError as error:
                self._drop_stream()
                refusal = translate(error, self._target)
                if refusal.applied and refusal.metadata.get("sequence", str(sequence)) != str(sequence):
                    refusal.applied = False  # it speaks of the block before, whose receipt has come
                if stream.attached.last_sequence == sequence:
                    refusal.applied = True  # before; it is only the question about it that was refused
                if isinstance(refusal, InternalError):  # it may have been applied; the next attachment tells
                    self.stale = True
                    attempts.pause_for(refusal, transient=not attempts.failed_internally)
                    attempts.failed_internally = True
                    continue
                if refusal.applied is False:
                    self._unresolved = self._resumes = sent = False
                if refusal.applied is not False or isinstance(refusal, Fenced) or in_place:
                    self.stale = True
                attempts.pause_for(refusal, transient=may_pass(error, refusal))
            except BaseException:  # Ctrl-C, or an answer that makes no sense
                self._drop_stream()
                self.stale = True
                raise
        self._sequence = sequence
        self._unresolved = self._resumes = False
        self._ahead.forget()
        if block is not None:
            self._encoder.commit(block, skipped=bool(receipt.skipped_steps))
        if trajectory is not None:
            self._flat[:] = trajectory[-1]
        elif answered and self._incoming is not self._flat:
            for part in ranges:
                self._flat[part.start : part.stop] = self._incoming[part.start : part.stop]
        if answered:
            self._behind -= present
        self.stale = False
        self.step_count = receipt.step
        self.last_receipt = decode_receipt(receipt)
        return self.last_receipt

    # --- attachment ----------------------------------------------------------------------------------------------

    def _movable(self) -> npt.NDArray[Any] | None:
        """The parameters, where they may move to memory that is shared with the server."""
        options = self._options
        exact = options.parameter_encoding in (None, self.dtype.name)
        return self._flat if options.shared_params and exact and not options.double_buffer else None

    def _open_stream(
        self, attempts: Attempts, *, resuming: bool, vector: npt.NDArray[Any] | None = None
    ) -> TrainStream:
        """The attached stream; attaches where there is none. ``resuming``: a block of ours may have been applied."""
        while self._stream is None:
            try:
                stream = TrainStream(self._train, self._attach, attempts.seconds_left, vector)
            except grpc.RpcError as error:
                failure = translate(error, self._target)
                failure.applied = None if resuming else False  # of the step; the server speaks of the attachment
                if isinstance(failure, RunNotFound):
                    raise failure.within(f"the last step this client knows is {self.step_count}") from None
                attempts.pause_for(failure, transient=may_pass(error, failure))
                continue
            self._stream = stream
            self._attached.add(self)
            if stream.attached.HasField("region") and stream.memory is None:
                self._attach.shared_memory = False  # it will not work the next time either
            self._encoder.drop()
            self._decoder.restart()
            if stream.attached.epoch != self._epoch + 1:
                self.stale = True  # somebody else has attached or written since
            self._epoch = stream.attached.epoch
            try:
                self._check_sequence(stream.attached.last_sequence, resuming)
            except BaseException:
                self._drop_stream()
                raise
        return self._stream

    def _check_sequence(self, last: int, resuming: bool) -> None:
        known = self._sequence
        if known is None:
            self._sequence = last
        elif last < known:
            self.stale = True
            self._sequence = last  # a caller who decides to go on starts from what the server has
            self._unresolved = self._resumes = False
            raise RunRolledBack(
                f"the server is at block {last} of worker {self.worker_id}, but it has acknowledged block {known} "
                f"(step {self.step_count}); nothing was sent again",
                last_sequence=last,
                acknowledged_sequence=known,
            )
        elif last > known + 1 or (last == known + 1 and not self._unresolved):
            raise WorkerConflict(
                f"the server has applied block {last} of worker {self.worker_id}; this client has sent none after "
                f"{known}. Another process uses the same worker_id",
                last_sequence=last,
            )
        elif last == known + 1 and not resuming:
            self._sequence = last  # an abandoned block turned out to be applied
            self._unresolved = False

    def _drop_stream(self) -> None:
        self._ahead.forget()
        if self._stream is not None:
            self._stream.abandon()
            self._stream = None
            self._attached.discard(self)

    def close(self) -> None:
        """Gives the run back to the server, where it stays."""
        with self._lock:
            self._ahead.forget()
            if self._stream is not None:
                self._stream.close()
                self._stream = None
                self._attached.discard(self)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- values --------------------------------------------------------------------------------------------------

    def describe(self) -> run_pb2.Run:
        """The run as the server holds it now, without its values: ``spec`` has the hyperparameters in force."""
        return self._values.describe()

    def read(self) -> dict[str, npt.NDArray[Any]]:
        """A fresh dict of arrays from the server, exact; ``params`` stay as they are."""
        return flat_vector.views(self.layout, self._values.read(self._attempts())[0])

    def refresh(self) -> None:
        """Reads the parameters from the server into ``params``."""
        with self._lock:
            self._refresh(self._attempts())

    def _refresh(self, attempts: Attempts) -> None:
        values, step = self._values.read(attempts)
        self._flat[:] = values
        self.step_count = step
        self.refreshes += 1
        self._behind.clear()
        self.stale = False

    def write(self, params: Mapping[str, Any], *, partial: bool = False) -> None:
        """Replaces all parameters on the server, all at once, and in ``params``. Raises as `flatten` does.

        ``partial``: only those that are given; the others stay what they are on the server, to the last bit.
        """
        with self._lock:
            values = flat_vector.flatten(self.layout, params, self.dtype, "the parameters", partial=partial)
            written = {self.layout.index[name] for name in params}
            ranges = self.layout.present_ranges(set(range(len(self.layout.tensors))) - written) if partial else None
            stale = self.stale and partial
            self.close()  # the write fences every stream, ours too
            self.stale = True  # until the server has answered, it may hold the old ones or the new ones
            self._epoch = self._values.write(values, ranges)
            for part in (Range(0, self.layout.elements),) if ranges is None else ranges:
                self._flat[part.start : part.stop] = values[part.start : part.stop]
            self._behind -= written
            self.stale = stale

    def state_dict(self) -> dict[str, Any]:
        """The optimizer state: ``{"step": int, "tensors": {name: {"step": int, slot: array, ...}}}``.

        Slots are ``exp_avg``, ``exp_avg_sq`` and, with amsgrad, ``max_exp_avg_sq``. For torch's own format see
        `gradwire.client.torch`.
        """
        return self._values.read_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the whole optimizer state by one that `state_dict` made. Raises ValueError for another layout."""
        with self._lock:
            upload = pack_state(self.layout, self.dtype, self.slots, state)  # checked before the stream is given up
            self.close()
            self.step_count, epoch = self._values.write_state(upload)
            if epoch != self._epoch + 1:
                self.stale = True  # somebody else came in between
            self._epoch = epoch

    # --- the run as a whole --------------------------------------------------------------------------------------

    def save_snapshot(self, label: str = "") -> SnapshotInfo:
        """Takes a snapshot on the server, which keeps it for as long as the run."""
        return snapshots.save_snapshot(self._values, label)

    def list_snapshots(self) -> list[SnapshotInfo]:
        """The snapshots of the run, the newest first: those asked for, and the last ones of the server's own."""
        return snapshots.list_snapshots(self._values)

    def roll_back(self, snapshot: SnapshotInfo | int) -> int:
        """Puts the run back to a snapshot: values, state, steps, hyperparameters; returns the step.

        Whoever is attached is fenced. Block numbers do not go back. Raises SnapshotNotFound.
        """
        with self._lock:
            self.close()
            self.stale = True  # until they are read anew
            step = snapshots.roll_back(self._values, snapshot)
            self._refresh(self._attempts())
            return step

    def fork(
        self,
        name: str,
        *,
        optimizer: Adam | None = None,
        lr: float | Sequence[float] | None = None,
        overrides: Mapping[int, Mapping[str, Any]] | None = None,
        snapshot: SnapshotInfo | int | None = None,
        durability: str | None = None,
        on_existing: str = "error",
        **options: Any,
    ) -> Run:
        """A new run with the same tensors, values, state and step, attached to.

        Args:
            optimizer: for all groups in place of their own; it must keep the same state (amsgrad or not).
            lr, overrides: numbers that change on top of that, as in `step`.
            snapshot: begin from this one; None: from the run as it is now.
            durability: as in `Server.create_run`; None: as this run.
            on_existing: ``"error"`` or ``"replace"``.
            options: see `RunOptions`.
        """
        if on_existing not in ("error", "replace"):
            raise ValueError(f"on_existing is {on_existing!r}; expected 'error' or 'replace'")
        run_options = RunOptions(
            **{"retry": self._options.retry, "shared_memory": self._options.shared_memory, **options}
        )
        replaces = on_existing == "replace"
        message = snapshots.fork_run(self._values, name, optimizer, lr, overrides, snapshot, durability, replaces)
        return Run(self._values.stub, self._train, self._target, message, run_options, self._attached)

    def export(
        self, path: str | Path, *, snapshot: SnapshotInfo | int | None = None, weights_only: bool = False
    ) -> int:
        """Writes the run, or a snapshot of it, to a safetensors file, and returns its step.

        ``safetensors.torch.load_file`` reads it as a state dict: each tensor under its name, and each slot as
        ``optimizer.SLOT.NAME`` unless ``weights_only``. `Server.import_run` makes a run of it.
        """
        return snapshots.export_run(self._values, Path(path), snapshot, weights_only)

    def digest(self) -> str:
        """SHA-256 of all parameters, slots, tensor steps and the dtype: the same for runs of the same bits."""
        return snapshots.digest_run(self._values)

    def _attempts(self) -> Attempts:
        return Attempts(self._options.retry, self._target)
