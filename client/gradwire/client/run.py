"""A run as its client sees it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from gradwire.client import flat as flats
from gradwire.client.errors import RunRolledBack, WorkerConflict, translate
from gradwire.client.optimizers import to_override
from gradwire.client.retry import Attempts, RetryPolicy, may_pass, retrying
from gradwire.client.stream import TrainStream
from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.encoding import Array, decode, encode, state_dtype, wire_dtype
from gradwire.wire.errors import InternalError, RunNotFound
from gradwire.wire.layout import Layout, Range

_RETURNS = {
    "last": train_pb2.RETURNS_LAST,
    "trajectory": train_pb2.RETURNS_TRAJECTORY,
    "none": train_pb2.RETURNS_NONE,
}
ENCODINGS = {
    "float32": run_pb2.ENCODING_FLOAT32,
    "float64": run_pb2.ENCODING_FLOAT64,
    "bfloat16": run_pb2.ENCODING_BFLOAT16,
    "float16": run_pb2.ENCODING_FLOAT16,
}


@dataclass(frozen=True)
class Receipt:
    """What a committed block says of itself."""

    step: int
    """Steps applied to the run after this block."""
    gradient_norm: float
    """L2 norm of the block's last gradient, over all tensors that had one."""
    learning_rates: tuple[float, ...]
    """Of each group, at the block's last step."""
    skipped_steps: tuple[int, ...]
    """Indices of the block's steps that were left out because their gradient was not finite."""
    durability: str
    """``"MEMORY"``: the run ends with the server."""

    @property
    def skipped(self) -> bool:
        """Whether any step was left out."""
        return bool(self.skipped_steps)


@dataclass(frozen=True)
class RunOptions:
    """How a client works on a run."""

    worker_id: str | None = None
    """Identifies this worker to the server over restarts of its process. None: a new one for each `Run` object."""
    takeover: bool = False
    """Take the run from another worker that is attached."""
    gradient_encoding: str | None = None
    """``"float32"``, ``"float64"``, ``"bfloat16"``, ``"float16"``; None: the run's own dtype, exact."""
    parameter_encoding: str | None = None
    """As above, for the parameters that come back."""
    double_buffer: bool = False
    """Keep the old parameters whole until a step is committed, at the price of a second vector."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)


class Run:
    """Parameters in ``params``; `step` sends gradients and updates them in place. Made by `Server`; methods take turns.

    ``stale`` is true after a failure in the middle of a step: ``params`` may then mix old and new values, and the next
    step reads them anew first.
    """

    def __init__(
        self,
        stub: service_pb2_grpc.OptimizerServiceStub,
        target: str,
        message: run_pb2.Run,
        options: RunOptions,
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
        self.slots = tuple(message.slots)
        self._stub = stub
        self._target = target
        self._options = options
        self._lock = threading.RLock()
        self._attach = train_pb2.Attach(
            run=spec.name,
            worker_id=options.worker_id or f"worker-{uuid.uuid4().hex}",
            takeover=options.takeover,
            gradient_encoding=_encoding(options.gradient_encoding),
            parameter_encoding=_encoding(options.parameter_encoding),
        )
        self._gradient_wire = wire_dtype(self._attach.gradient_encoding, self.dtype)
        self._parameter_wire = wire_dtype(self._attach.parameter_encoding, self.dtype)
        self._flat = np.empty(self.layout.elements, self.dtype) if params is None else params
        self._incoming = np.empty_like(self._flat) if options.double_buffer else self._flat
        self.params: dict[str, npt.NDArray[Any]] = flats.views(self.layout, self._flat)
        self._stream: TrainStream | None = None
        self._sequence: int | None = None  # the last block that was acknowledged
        self._unresolved = False  # the block after it may have been sent, and its outcome is not known
        self._behind: set[int] = set()  # tensors of which the server has newer values that nobody asked for
        self._open_stream(Attempts(options.retry, target), resuming=False)
        if params is None:
            self.refresh()

    # --- steps ---------------------------------------------------------------------------------------------------

    @property
    def worker_id(self) -> str:
        """This worker's id."""
        return self._attach.worker_id

    def step(
        self,
        grads: Mapping[str, Any],
        *,
        lr: float | Sequence[float] | None = None,
        overrides: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> Receipt:
        """One optimizer step; ``params`` hold the new values when it returns.

        Args:
            grads: name -> array of the tensor's shape. A tensor that is missing or None stays as it is, its t too.
            lr: a new learning rate from this step on, for all groups or one for each.
            overrides: group index -> new ``lr``, ``betas``, ``eps``, ``weight_decay``, ``bounds`` from this step on.

        Raises ValueError or TypeError for malformed gradients (nothing is sent), GradwireError as the error table says.
        """
        with self._lock:
            header = train_pb2.BlockHeader(
                steps=1, returns=train_pb2.RETURNS_LAST, overrides=self._overrides(lr, overrides)
            )
            return self._block(header, self._rows(grads, None), None)

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
        with self._lock:
            arrays = {name: flats.as_array(name, value) for name, value in grads.items() if value is not None}
            counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
            if len(counts) != 1 or 0 in counts:
                raise ValueError(f"the gradients have {sorted(counts)} rows; expected the same K >= 1 for all tensors")
            steps = counts.pop()
            header = train_pb2.BlockHeader(
                steps=steps, returns=_RETURNS[returns], overrides=self._overrides(lr, overrides)
            )
            rows = self._rows(arrays, steps)
            trajectory = np.empty((steps, self.layout.elements), self.dtype) if returns == "trajectory" else None
            self._block(header, rows, trajectory)
            if returns == "none":
                return {}
            if trajectory is None:
                return {name: view.copy() for name, view in self.params.items()}
            return {t.name: trajectory[:, t.start : t.stop].reshape(steps, *t.shape) for t in self.layout.tensors}

    def _block(
        self, header: train_pb2.BlockHeader, rows: list[Array | None], trajectory: npt.NDArray[Any] | None
    ) -> Receipt:
        """Sends one block, exactly once, and takes its answer.

        The order of the assignments matters: Ctrl-C may come between any two of them, and the next step must still do
        the right thing.
        """
        absent = frozenset(index for index, row in enumerate(rows) if row is None)
        present = set(range(len(rows))) - absent
        header.absent_tensors.extend(sorted(absent))
        ranges = self.layout.present_ranges(absent)
        answered = header.returns != train_pb2.RETURNS_NONE
        if self._unresolved:
            self._drop_stream()  # a step was interrupted; what its stream still brings is not for this one
        if not answered:
            self._behind |= present

        def accept(reply: train_pb2.Parameters) -> None:
            self.stale = True  # until the receipt, the arrays mix old and new
            values = decode(reply.data, self._parameter_wire, reply.steps)
            columns = slice(reply.offset, reply.offset + values.shape[1])
            if trajectory is None:
                self._incoming[columns] = values[0]
            else:
                trajectory[reply.first_step : reply.first_step + reply.steps, columns] = values

        attempts = Attempts(self._options.retry, self._target)
        sent = False
        while True:
            stream = self._open_stream(attempts, resuming=sent)
            # Only now, when no older stream of ours can change anything any more.
            if self.stale or (answered and self._behind & absent):
                self._refresh(attempts)
            if trajectory is not None and absent:
                trajectory[:] = self._flat  # tensors without a gradient keep their values
            assert self._sequence is not None
            sequence = self._sequence + 1
            try:
                self._unresolved = sent = True
                if stream.attached.last_sequence == sequence:  # applied before the connection broke
                    again = train_pb2.Gradients(sequence=sequence, last=True)
                    stream.send([train_pb2.TrainRequest(gradients=again)])
                else:
                    stream.send(self._messages(sequence, header, rows, ranges))
                receipt = stream.collect(sequence, accept)
                break
            except grpc.RpcError as error:
                self._drop_stream()
                refusal = translate(error, self._target)
                if isinstance(refusal, InternalError):  # it may have been applied; the next attachment tells
                    self.stale = True
                    attempts.pause_for(refusal, transient=not attempts.failed_internally)
                    attempts.failed_internally = True
                    continue
                if refusal.applied is False:
                    self._unresolved = sent = False
                else:
                    self.stale = True
                attempts.pause(error, applied=None)
            except BaseException:  # Ctrl-C, or an answer that makes no sense
                self._drop_stream()
                self.stale = True
                raise
        self._sequence = sequence
        self._unresolved = False
        if trajectory is not None:
            self._flat[:] = trajectory[-1]
        elif answered and self._incoming is not self._flat:
            for part in ranges:
                self._flat[part.start : part.stop] = self._incoming[part.start : part.stop]
        if answered:
            self._behind -= present
        self.stale = False
        self.step_count = receipt.step
        self.last_receipt = Receipt(
            step=receipt.step,
            gradient_norm=receipt.gradient_norm,
            learning_rates=tuple(receipt.learning_rates),
            skipped_steps=tuple(receipt.skipped_steps),
            durability=run_pb2.Durability.Name(receipt.durability).removeprefix("DURABILITY_"),
        )
        return self.last_receipt

    def _rows(self, grads: Mapping[str, Any], steps: int | None) -> list[Array | None]:
        """For each tensor its gradients as ``[K, size]``, or None."""
        flats.check_names(self.layout, grads, "the gradients")
        rows: list[Array | None] = []
        for tensor in self.layout.tensors:
            value = grads.get(tensor.name)
            if value is None:
                rows.append(None)
                continue
            array = flats.as_array(tensor.name, value)
            flats.check_shape(tensor.name, array.shape, tensor.shape if steps is None else (steps, *tensor.shape))
            rows.append(array.reshape(steps or 1, tensor.size))
        return rows

    def _messages(
        self, sequence: int, header: train_pb2.BlockHeader, rows: list[Array | None], ranges: Sequence[Range]
    ) -> Iterator[train_pb2.TrainRequest]:
        parts = list(flats.tiles(ranges, header.steps * self._gradient_wire.itemsize))
        if not parts:
            yield train_pb2.TrainRequest(gradients=train_pb2.Gradients(sequence=sequence, last=True, header=header))
        for index, part in enumerate(parts):
            gradients = train_pb2.Gradients(
                sequence=sequence,
                offset=part.start,
                data=encode(flats.gather(self.layout, rows, part), self._gradient_wire),
                last=index == len(parts) - 1,
                header=header if index == 0 else None,
            )
            yield train_pb2.TrainRequest(gradients=gradients)

    def _overrides(
        self, lr: float | Sequence[float] | None, overrides: Mapping[int, Mapping[str, Any]] | None
    ) -> list[run_pb2.Override]:
        changes: dict[int, dict[str, Any]] = {group: dict(values) for group, values in (overrides or {}).items()}
        for group in changes:
            if not 0 <= group < self.layout.groups:
                raise ValueError(f"overrides name group {group}; this run has groups 0 to {self.layout.groups - 1}")
        if lr is not None:
            rates = list(lr) if isinstance(lr, Sequence) else [lr] * self.layout.groups
            if len(rates) != self.layout.groups:
                raise ValueError(
                    f"lr has {len(rates)} values; expected one number, or one for each of {self.layout.groups}"
                )
            for group, rate in enumerate(rates):
                changes.setdefault(group, {})["lr"] = rate
        return [to_override(group, values) for group, values in sorted(changes.items())]

    # --- attachment ----------------------------------------------------------------------------------------------

    def _open_stream(self, attempts: Attempts, *, resuming: bool) -> TrainStream:
        """The attached stream; attaches where there is none. ``resuming``: a block of ours may have been applied."""
        while self._stream is None:
            try:
                stream = TrainStream(self._stub, self._attach, attempts.seconds_left)
            except grpc.RpcError as error:
                failure = translate(error, self._target)
                failure.applied = None if resuming else False  # of the step; the server speaks of the attachment
                if isinstance(failure, RunNotFound):
                    raise failure.within(f"the last step this client knows is {self.step_count}") from None
                attempts.pause_for(failure, transient=may_pass(error, failure))
                continue
            self._stream = stream
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
            self._unresolved = False
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
        if self._stream is not None:
            self._stream.abandon()
            self._stream = None

    def close(self) -> None:
        """Gives the run back to the server, where it stays."""
        with self._lock:
            if self._stream is not None:
                self._stream.close()
                self._stream = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- values --------------------------------------------------------------------------------------------------

    def describe(self) -> run_pb2.Run:
        """The run as the server holds it now, without its values: ``spec`` has the hyperparameters in force."""
        request = service_pb2.GetRunRequest(name=self._attach.run)
        return retrying(lambda: self._stub.GetRun(request), self._options.retry, self._target).run

    def read(self) -> dict[str, npt.NDArray[Any]]:
        """A fresh dict of arrays from the server, exact; ``params`` stay as they are."""
        return flats.views(self.layout, self._read(Attempts(self._options.retry, self._target))[0])

    def refresh(self) -> None:
        """Reads the parameters from the server into ``params``."""
        with self._lock:
            self._refresh(Attempts(self._options.retry, self._target))

    def _refresh(self, attempts: Attempts) -> None:
        values, step = self._read(attempts)
        self._flat[:] = values
        self.step_count = step
        self._behind.clear()
        self.stale = False

    def _read(self, attempts: Attempts) -> tuple[npt.NDArray[Any], int]:
        request = service_pb2.ReadParametersRequest(name=self._attach.run)

        def call() -> tuple[npt.NDArray[Any], int]:
            values = np.empty(self.layout.elements, self.dtype)
            step = 0
            for response in self._stub.ReadParameters(request):
                if response.WhichOneof("message") == "header":
                    step = response.header.step
                else:
                    flats.place(values, response.slice.offset, response.slice.data, self.dtype)
            return values, step

        return attempts.until_done(call)

    def write(self, params: Mapping[str, Any]) -> None:
        """Replaces all parameters on the server, all at once, and in ``params``. Raises as `flatten` does."""
        with self._lock:
            values = flats.flatten(self.layout, params, self.dtype, "the parameters")
            self.close()  # the write fences every stream, ours too

            def requests() -> Iterator[service_pb2.WriteParametersRequest]:
                header = service_pb2.WriteParametersHeader(name=self._attach.run)
                yield service_pb2.WriteParametersRequest(header=header)
                for part in flats.value_slices(values, self.dtype):
                    yield service_pb2.WriteParametersRequest(slice=part)

            self.stale = True  # until the server has answered, it may hold the old ones or the new ones
            retrying(lambda: self._stub.WriteParameters(requests()), self._options.retry, self._target)
            self._flat[:] = values
            self._behind.clear()
            self.stale = False

    def state_dict(self) -> dict[str, Any]:
        """The optimizer state: ``{"step": int, "tensors": {name: {"step": int, slot: array, ...}}}``.

        Slots are ``exp_avg``, ``exp_avg_sq`` and, with amsgrad, ``max_exp_avg_sq``. For torch's own format see
        `gradwire.client.torch`.
        """
        request = service_pb2.ReadStateRequest(name=self._attach.run)

        def call() -> dict[str, Any]:
            header = service_pb2.StateHeader()
            slots: list[npt.NDArray[Any]] = []
            for response in self._stub.ReadState(request):
                if response.WhichOneof("message") == "header":
                    header = response.header
                    slots = [np.empty(self.layout.elements, self.dtype) for _ in header.slots]
                else:
                    part = response.slice
                    flats.place(slots[part.slot], part.offset, part.data, self.dtype)
            by_name = {slot: flats.views(self.layout, vector) for slot, vector in zip(header.slots, slots, strict=True)}
            tensors = {
                tensor.name: {"step": t, **{slot: parts[tensor.name] for slot, parts in by_name.items()}}
                for tensor, t in zip(self.layout.tensors, header.tensor_steps, strict=True)
            }
            return {"step": header.step, "tensors": tensors}

        return retrying(call, self._options.retry, self._target)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the whole optimizer state by one that `state_dict` made. Raises ValueError for another layout."""
        with self._lock:
            tensors: Mapping[str, Mapping[str, Any]] = state["tensors"]
            flats.check_names(self.layout, tensors, "the state's tensors")
            for name, parts in tensors.items():
                if set(parts) != {"step", *self.slots}:
                    raise ValueError(
                        f"the state of {name!r} has {sorted(parts)}; expected {sorted(('step', *self.slots))}"
                    )
            vectors = [
                flats.flatten(
                    self.layout,
                    {name: parts[slot] for name, parts in tensors.items()},
                    self.dtype,
                    f"the {slot} values",
                )
                for slot in self.slots
            ]
            header = service_pb2.WriteStateHeader(
                name=self._attach.run,
                state=service_pb2.StateHeader(
                    step=int(state["step"]),
                    tensor_steps=[int(tensors[tensor.name]["step"]) for tensor in self.layout.tensors],
                    slots=self.slots,
                ),
            )
            self.close()

            def requests() -> Iterator[service_pb2.WriteStateRequest]:
                yield service_pb2.WriteStateRequest(header=header)
                for slot, vector in enumerate(vectors):
                    for part in flats.slot_slices(slot, vector):
                        yield service_pb2.WriteStateRequest(slice=part)

            response = retrying(lambda: self._stub.WriteState(requests()), self._options.retry, self._target)
            self.step_count = response.step


def _encoding(name: str | None) -> run_pb2.Encoding.ValueType:
    if name is None:
        return run_pb2.ENCODING_UNSPECIFIED
    if name not in ENCODINGS:
        raise ValueError(f"encoding is {name!r}; expected one of {', '.join(map(repr, ENCODINGS))}")
    return ENCODINGS[name]
