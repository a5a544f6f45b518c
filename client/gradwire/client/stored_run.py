"""A run on its server: attached to, read, written, put back, copied."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from gradwire.client.calls import files, snapshots
from gradwire.client.calls.forks import ForkChanges, fork_run
from gradwire.client.calls.optimizer_state import pack_state
from gradwire.client.calls.remote_values import RemoteValues
from gradwire.client.calls.series import Series, decode_series, read_series
from gradwire.client.calls.snapshots import SnapshotInfo
from gradwire.client.calls.workers import Workers, list_workers
from gradwire.client.encodings import flat_vector
from gradwire.client.encodings.selection import encodings_of
from gradwire.client.errors import ConnectionLost
from gradwire.client.optimizers.optimizer import Optimizer
from gradwire.client.options import Receipt, RunOptions
from gradwire.client.training.attach_message import attach_message
from gradwire.client.training.attachment import UNDERSTANDS, Attachment
from gradwire.client.training.local_parameters import LocalParameters
from gradwire.client.training.shared_attachment import SharedAttachment
from gradwire.client.transport.link import Link
from gradwire.client.transport.stream import TrainStream
from gradwire.client.workers.places import take as take_place
from gradwire.v1 import run_pb2, service_pb2
from gradwire.wire.encoding import state_dtype
from gradwire.wire.errors import LeaderBusy
from gradwire.wire.layout import Range
from gradwire.wire.layout_message import decode_layout


class StoredRun:
    """What a client has of a run, but for the steps, which `Run` adds."""

    def __init__(
        self,
        link: Link,
        message: run_pb2.Run,
        options: RunOptions,
        attached: set[Attachment],
        params: npt.NDArray[Any] | None = None,
        *,
        created: bool = False,
    ) -> None:
        spec = message.spec
        self.shared = spec.HasField("shared")
        """Whether many workers train it together."""
        self.name = spec.name.removeprefix("runs/")
        self.layout = decode_layout(spec.groups)
        self.dtype = state_dtype(spec.dtype)
        self.server_instance = message.server_instance
        self.slots = tuple(message.slots)
        self.last_receipt: Receipt | None = None
        self._before_reading: Callable[[], None] | None = None
        """Called before values or state are read off the server: whoever has changes of them writes them."""
        self._after_replacing: Callable[[bool], None] | None = None
        """Called when the state has been replaced, and, True, all values too: whoever has copies takes new ones."""
        self._trained_elsewhere = False
        """Whether gradients are of copies of the parameters, to which no answer is written before it is whole."""
        self._options = options
        self._attached = attached
        attach = attach_message(message, options, link, UNDERSTANDS, created=created)
        self._encodings = encodings_of(attach, self.layout, self.dtype)
        self._values = RemoteValues(
            link,
            spec.name,
            message.uid,
            self.layout,
            self.dtype,
            self.slots,
            options.retry,
            attach.worker_id if self.shared else "",
        )
        self._parameters = LocalParameters(
            self._values,
            params,
            double_buffer=options.double_buffer,
            step_count=message.step,
            epoch=message.epoch,
        )
        self._attachment = (SharedAttachment if self.shared else Attachment)(
            link,
            attach,
            message.epoch,
            options.last_sequence,
            self._parameters,
            self._encodings,
            attached,
        )
        if isinstance(self._attachment, SharedAttachment):
            attachment = self._attachment
            attachment.leads_if_free = options.leads is None
            if options.worker_id is None:
                self._place = take_place(spec.name, message.uid, attach.worker_id, lambda: attachment.given_up)
        stream = self._open_first_stream()
        if params is None or (self.shared and (self.stale or stream.attached.step != self.step_count)):
            self.refresh()  # others were faster: the first gradient shall not be old

    def _open_first_stream(self) -> TrainStream:
        """Attaches, and moves the parameters to memory that is shared with the server where that was asked for."""
        options = self._options
        exact = options.parameter_encoding in (None, self.dtype.name)
        movable = options.shared_params and exact and not options.double_buffer
        stream = self._attachment.open(
            self._remote.attempts(),
            resuming=self._attachment.resumes,
            vector=self._parameters.vector if movable else None,
        )
        if stream.memory is not None and stream.memory.in_place:
            self._parameters.move_to(stream.memory)
        return stream

    # Whatever talks to the server begins with one of these two.

    @property
    def _lock(self) -> threading.RLock:
        self._attachment.require_usable()
        return self._attachment.lock

    @property
    def _remote(self) -> RemoteValues:
        self._attachment.require_usable()
        return self._values

    @property
    def params(self) -> dict[str, npt.NDArray[Any]]:
        """Name -> array; steps change them in place."""
        return self._parameters.by_name

    @property
    def step_count(self) -> int:
        """Steps applied to the run, as far as this client has heard."""
        return self._parameters.step_count

    @property
    def stale(self) -> bool:
        """Whether ``params`` may mix old and new values; the next step reads them anew first."""
        return self._parameters.stale

    @property
    def refreshes(self) -> int:
        """How often all of ``params`` have been read anew."""
        return self._parameters.refreshes

    @property
    def shares_memory(self) -> bool:
        """Whether values travel through memory that is shared with the server, at present."""
        return self._attachment.stream is not None and self._attachment.stream.memory is not None

    @property
    def worker_id(self) -> str:
        """This worker's id."""
        return self._attachment.message.worker_id

    @property
    def leads(self) -> bool:
        """Whether this worker may change hyperparameters, parameters and state; in runs of one worker it does."""
        return self._attachment.leads

    def _require_lead(self, what: str) -> None:
        if not self.leads:
            raise LeaderBusy(
                f"{what} is for the worker that leads run {self.name!r}, and {self.worker_id} does not; expected that "
                "from rank 0 or who has created the run, or from one that has attached with leads=True"
            )

    def hold(self) -> None:
        """Attaches now, where there is no stream, rather than with the next step."""
        with self._lock:
            self._attachment.open(self._remote.attempts(), resuming=self._attachment.resumes)

    def close(self) -> None:
        """Gives the run back to the server, where it stays."""
        self._attachment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- values --------------------------------------------------------------------------------------------------

    def describe(self) -> run_pb2.Run:
        """The run as the server holds it now, without its values: ``spec`` has the hyperparameters in force."""
        return self._remote.describe()

    def workers(self) -> Workers:
        """Who works on the run, and what its open round waits for. Needs no turn: it answers while `step` waits."""
        return list_workers(self._remote)

    def series(self, name: str, *, from_step: int = 0, resolution: int = 0) -> Series:
        """What the run keeps of a scalar, of blocks that were answered. Needs no turn.

        Args:
            name: one that was logged, or of the server's own: ``gradient_norm``, ``lr`` (with several groups ``lr/0``
                and so on) and ``steps_per_second``.
            from_step: only buckets that end there or later.
            resolution: at most so many buckets, made of neighbours; 0: as they are kept, at most 2,048.

        Raises ValueError where there is no such series, ServerTooOld.
        """
        values = self._remote
        self._attachment.require_series()
        found, names = read_series(values.link, values.name, values.uid, values.retry, (name,), from_step, resolution)
        if name not in names:
            raise ValueError(f"run {self.name!r} has no series {name!r}; expected one of {', '.join(names) or 'none'}")
        return found[0] if found else decode_series(service_pb2.Series(name=name, bucket_steps=1))

    def series_names(self) -> list[str]:
        """The series that have values, in the order in which they have come."""
        values = self._remote
        self._attachment.require_series()
        return read_series(values.link, values.name, values.uid, values.retry, resolution=1)[1]

    def read(self) -> dict[str, npt.NDArray[Any]]:
        """A fresh dict of arrays from the server, exact; ``params`` stay as they are."""
        self._settle()
        return flat_vector.views(self.layout, self._remote.read(self._remote.attempts())[0])

    def refresh(self) -> None:
        """Reads the parameters from the server into ``params``."""
        with self._lock:
            if self._attachment.unresolved and not self._attachment.resumes:
                # What was interrupted is applied by now, or never will be, once there is a new stream.
                self._attachment.open(self._remote.attempts(), resuming=False)
                self._attachment.unresolved = False
            self._parameters.refresh(self._remote.attempts())

    def write(self, params: Mapping[str, Any], *, partial: bool = False) -> None:
        """Replaces all parameters on the server, all at once, and in ``params``. Raises as `flatten` does.

        ``partial``: only those that are given; the others stay what they are on the server, to the last bit.
        """
        with self._lock:
            self._require_lead("a write of parameters")
            values = flat_vector.flatten(self.layout, params, self.dtype, "the parameters", partial=partial)
            written = {self.layout.index[name] for name in params}
            ranges = self.layout.present_ranges(set(range(len(self.layout.tensors))) - written) if partial else None
            stale = self.stale and partial
            self._attachment.close(leaves=False)  # the write fences every stream, ours too
            self._parameters.stale = True  # until the server has answered, it may hold the old ones or the new ones
            written_at = self._remote.write(values, ranges)
            known, self._attachment.epoch = self._attachment.epoch, written_at.epoch
            self._parameters.take(values, (Range(0, self.layout.elements),) if ranges is None else ranges)
            self._parameters.behind -= written
            self._parameters.stale = stale
            self._parameters.mixed = stale and self._parameters.mixed
            if self.shared:
                if not self._parameters.are_written(written_at, known, whole=ranges is None):
                    self._parameters.refresh(self._remote.attempts())
                self._take_the_place_again()

    def state_dict(self) -> dict[str, Any]:
        """The optimizer state: ``{"step": int, "tensors": {name: {"step": int, slot: array, ...}}}``.

        Slots are ``exp_avg``, ``exp_avg_sq`` and, with amsgrad, ``max_exp_avg_sq``. For torch's own format see
        `gradwire.client.torch`.
        """
        self._settle()
        return self._remote.read_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the whole optimizer state by one that `state_dict` made. Raises ValueError for another layout."""
        with self._lock:
            self._require_lead("a change of the optimizer state")
            upload = pack_state(self.layout, self.dtype, self.slots, state)  # checked before the stream is given up
            self._attachment.close(leaves=False)
            written = self._remote.write_state(upload)
            known, self._attachment.epoch = self._attachment.epoch, written.epoch
            if written.step < self.step_count:
                self._attachment.logged.cut(written.step)  # as the server cuts what it has
            if self.shared:
                self._parameters.refresh(self._remote.attempts())  # others may have stepped since these came
                self._take_the_place_again()
            else:
                self._parameters.step_count = written.step
                if written.epoch != known + 1:
                    self._parameters.stale = True  # somebody else came in between
        self._replaced(values=False)

    def _take_the_place_again(self) -> None:
        """After what has fenced this worker's own stream: without one its lease would end before a long step does."""
        with suppress(ConnectionLost):  # the next step is going to say so
            self.hold()

    def _replaced(self, *, values: bool) -> None:
        if self._after_replacing is not None:
            self._after_replacing(values)

    def _settle(self) -> None:
        if self._before_reading is not None:
            self._before_reading()

    # --- the run as a whole --------------------------------------------------------------------------------------

    def save_snapshot(self, label: str = "") -> SnapshotInfo:
        """Takes a snapshot on the server, which keeps it for as long as the run.

        Of a run in memory it is in memory, too, and ends with the server: `SnapshotInfo.durability` says so.
        """
        self._settle()
        return snapshots.save_snapshot(self._remote, label)

    def list_snapshots(self) -> list[SnapshotInfo]:
        """The snapshots of the run, the newest first: those asked for, and the last ones of the server's own."""
        return snapshots.list_snapshots(self._remote)

    def roll_back(self, snapshot: SnapshotInfo | int) -> int:
        """Puts the run back to a snapshot: values, state, steps, hyperparameters; returns the step.

        Whoever is attached is fenced. Block numbers do not go back. Raises SnapshotNotFound.
        """
        with self._lock:
            self._require_lead("a roll-back")
            self._attachment.logged.take()  # what waits was of the steps that are undone
            self._attachment.close(leaves=False)
            self._parameters.stale = True  # until they are read anew
            step = snapshots.roll_back(self._remote, snapshot)
            self._parameters.refresh(self._remote.attempts())
            if self.shared:
                self._take_the_place_again()
        self._replaced(values=True)
        return step

    def fork(
        self,
        name: str,
        *,
        optimizer: Optimizer | None = None,
        lr: float | Sequence[float] | None = None,
        overrides: Mapping[int, Mapping[str, Any]] | None = None,
        snapshot: SnapshotInfo | int | None = None,
        durability: str | None = None,
        on_existing: str = "error",
        **options: Any,
    ) -> Self:
        """A new run with the same tensors, values, state and step, attached to.

        Args:
            optimizer: for all groups in place of their own; it must keep the same state.
            lr, overrides: numbers that change on top of that, as in `step`.
            snapshot: begin from this one; None: from the run as it is now.
            durability: as in `Server.create_run`; None: as this run.
            on_existing: ``"error"`` or ``"replace"``.
            options: see `RunOptions`.
        """
        if on_existing not in ("error", "replace"):
            raise ValueError(f"on_existing is {on_existing!r}; expected 'error' or 'replace'")
        if snapshot is None:
            self._settle()
        run_options = RunOptions(
            **{"retry": self._options.retry, "shared_memory": self._options.shared_memory, **options}
        )
        changes = ForkChanges(optimizer, lr, overrides, durability)
        message = fork_run(self._remote, name, snapshot, changes, replace=on_existing == "replace")
        return type(self)(self._remote.link, message, run_options, self._attached, created=True)

    def export(
        self, path: str | Path, *, snapshot: SnapshotInfo | int | None = None, weights_only: bool = False
    ) -> int:
        """Writes the run, or a snapshot of it, to a safetensors file, and returns its step.

        ``safetensors.torch.load_file`` reads it as a state dict: each tensor under its name, and each slot as
        ``optimizer.SLOT.NAME`` unless ``weights_only``. `Server.import_run` makes a run of it.
        """
        if snapshot is None:
            self._settle()
        return files.export_run(self._remote, Path(path), snapshot, weights_only)

    def digest(self) -> str:
        """SHA-256 of all parameters, slots, tensor steps and the dtype: the same for runs of the same bits."""
        self._settle()
        return files.digest_run(self._remote)
