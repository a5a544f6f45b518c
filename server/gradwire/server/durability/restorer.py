"""From a snapshot and the journal after it to a run: the way back of `run_snapshot` and of `Run.commit`."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np

from gradwire.server.devices.base import Device, DeviceArray, State
from gradwire.server.durability.records import (
    NewerRecord,
    block_from_text,
    groups_from_data,
    log_from_text,
    read_record,
    receipt_from_data,
    receipt_to_data,
    spec_from_text,
)
from gradwire.server.durability.run_snapshot import PARAMETERS, fill, state_vectors
from gradwire.server.engine.applied_round import AppliedRound
from gradwire.server.engine.block import BlockHeader, Returns
from gradwire.server.engine.block_plan import check_header, plan_block
from gradwire.server.engine.gradients import StagedGradients
from gradwire.server.engine.run import Run, Values
from gradwire.server.engine.spec import Durability, RunSpec
from gradwire.server.engine.workers import Holder, WorkerRecord
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.store.base import Entry, Snapshot, SnapshotDamaged, StoredRun
from gradwire.server.store.recovery import Unrecoverable
from gradwire.wire.errors import GradwireError
from gradwire.wire.layout import Range

_ANY_SIZE = 2**63


class Restorer:
    """Makes the runs of one store again. `begin` and `replay` are what `store.recovery.recover` asks for."""

    def __init__(self, device: Device, budget_of: Callable[[str], MemoryBudget], executor: Executor) -> None:
        self._device = device
        self._budget_of = budget_of
        self._executor = executor
        self._gradients: DeviceArray | None = None
        self._unfinished: Run | None = None

    def begin(self, stored: StoredRun, spec: RunSpec, snapshot: Snapshot) -> Run:
        """Raises SnapshotDamaged for a snapshot of something else, Unrecoverable where there is no room.

        Args:
            spec: what `spec_of` makes of ``stored``.
        """
        self.give_up()
        try:
            read_record(stored.extra, "what is stored of it")
            run = Run(spec, self._device, self._budget_of(spec.name), self._executor, stored.request_id)
        except (GradwireError, ValueError, KeyError) as error:
            raise Unrecoverable(str(error)) from error
        self._unfinished = run
        run.uid = stored.uid
        run.series.live = False
        try:
            fill_run(run, snapshot)
        except NewerRecord as error:  # a whole one: to begin from an older one would lose steps
            raise Unrecoverable(str(error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise SnapshotDamaged(f"it is no snapshot of this run: {error}") from error
        except GradwireError as error:
            raise Unrecoverable(str(error)) from error
        run.epoch = max(run.epoch, stored.epoch)
        return run

    def replay(self, run: Run, entry: Entry) -> int:
        """Applies a block as it was applied; returns the run's step. Raises Unrecoverable where it ends otherwise."""
        try:
            logged = log_from_text(entry.block) if not entry.gradients else None
            if logged is not None:
                run.series.claim(logged[1])
                run.log(entry.worker_id, *logged)
                return run.step
            header, expected, applied_round = block_from_text(entry.block)
            if (applied_round is None) is not (run.spec.shared is None):
                raise ValueError("a round of a run of one worker, or a block of a shared run")
            receipt = self._apply(run, entry, header, expected["received_bytes"], applied_round)
        except (GradwireError, ValueError, KeyError) as error:
            raise Unrecoverable(f"block {entry.sequence} of worker {entry.worker_id!r}: {error}") from error
        if json.dumps(receipt) != json.dumps(expected):
            raise Unrecoverable(
                f"block {entry.sequence} of worker {entry.worker_id!r} ends with {json.dumps(receipt)[:200]}, and not "
                f"with {json.dumps(expected)[:200]} as it did: this machine computes other bits"
            )
        return run.step

    def _apply(
        self, run: Run, entry: Entry, header: BlockHeader, received_bytes: int, applied_round: AppliedRound | None
    ) -> dict[str, Any]:
        spec = run.spec
        groups = check_header(run, header, _ANY_SIZE)
        gradients = self._array(spec, header.steps)
        block = plan_block(run, entry.sequence, header, groups)
        block.received_bytes, block.round = received_bytes, applied_round
        try:
            present = sum(part.stop - part.start for part in block.ranges)
            values = np.frombuffer(entry.gradients, spec.dtype).reshape(header.steps, present)
            column = 0
            for part in block.ranges:
                size = part.stop - part.start
                self._device.write(gradients, part.start, values[:, column : column + size])
                column += size
            workers = [part.worker_id for part in applied_round.contributions] if applied_round else [entry.worker_id]
            for worker_id in workers:
                record = run.workers.setdefault(worker_id, WorkerRecord())
                run.workers.move_to_end(worker_id)
            run.holder = Holder(entry.worker_id, run.epoch, record, run.step)
            receipt = run.commit(run.holder, block, StagedGradients(spec, self._device, block, gradients))
        finally:
            run.holder = None
            block.drop()
        return receipt_to_data(receipt)

    def _array(self, spec: RunSpec, steps: int) -> DeviceArray:
        if self._gradients is None or self._gradients.shape != (steps, spec.layout.elements):
            self._gradients = self._device.allocate(steps, spec.layout.elements, spec.dtype)
        return self._gradients

    def finish(self) -> Run:
        """The run that has been made."""
        run, self._unfinished = self._unfinished, None
        self._gradients = None
        assert run is not None
        run.series.live = True
        return run

    def give_up(self) -> None:
        """Frees what has been made of a run."""
        if self._unfinished is not None:
            self._unfinished.delete()
            self._unfinished = None
        self._gradients = None


def spec_of(stored: StoredRun) -> RunSpec:
    """Raises Unrecoverable where the run's spec is none."""
    try:
        return spec_from_text(stored.spec)
    except (GradwireError, ValueError, KeyError, TypeError) as error:
        raise Unrecoverable(str(error)) from error


def fill_run(run: Run, snapshot: Snapshot) -> None:
    """Gives a run all that a snapshot holds. Raises ValueError or KeyError where it does not fit."""
    values = fill_state(run.spec, run.device, run.state, snapshot)
    run.step, run.tensor_steps, run.groups = values.step, values.tensor_steps, values.groups
    run.series.load(values.series or {})
    meta = read_record(snapshot.meta, f"the snapshot of step {snapshot.step}")
    run.epoch = meta["epoch"]
    run.has_forgotten = bool(meta.get("forgotten", False))
    run.rounds = meta.get("rounds", 0)
    for worker in meta["workers"]:
        run.workers[worker["id"]] = _worker(run, worker, snapshot)


def fill_state(spec: RunSpec, device: Device, state: State, snapshot: Snapshot) -> Values:
    """Writes the vectors of a snapshot into ``state``, and returns it with the rest. Raises ValueError or KeyError."""
    meta = read_record(snapshot.meta, f"the snapshot of step {snapshot.step}")
    found, expected = state_vectors(snapshot.vectors), {PARAMETERS, *spec.slots}
    if found != expected:
        raise ValueError(f"it has {sorted(found)}; expected {sorted(expected)}")
    for name, vector in snapshot.vectors.items():
        if name in expected and (vector.shape, vector.dtype) != ((spec.layout.elements,), spec.dtype):
            raise ValueError(f"{name} is {vector.dtype}{list(vector.shape)}")
    fill(device, state.params, snapshot.vectors[PARAMETERS])
    for name in spec.slots:
        fill(device, state.slots[name], snapshot.vectors[name])
    tensor_steps = np.array(meta["tensor_steps"], np.int64)
    if tensor_steps.shape != (len(spec.layout.names),):
        raise ValueError("it has another number of tensors")
    return Values(state, snapshot.step, tensor_steps, groups_from_data(meta["groups"]), meta.get("series"))


def _worker(run: Run, data: dict[str, Any], snapshot: Snapshot) -> WorkerRecord:
    record = WorkerRecord(last_sequence=data["last_sequence"], last_accepted=data.get("last_accepted", 0))
    record.last_log = data.get("last_log", 0)
    if data["receipt"] is None:
        return record
    durability = run.spec.durability or Durability.MEMORY
    record.receipt = receipt_from_data(data["receipt"], durability, repeated=True)
    record.returns = Returns[data["returns"]]
    record.steps = data["steps"]
    record.ranges = tuple(Range(*part) for part in data["ranges"])
    if "result" in data:
        vector = snapshot.vectors[data["result"]]
        values = vector.array().reshape(record.steps, run.spec.layout.elements)
        record.reservation = run.budget.reserve(values.nbytes, f"a trajectory of {run.spec.name}")
        record.trajectory = run.device.allocate(*values.shape, run.spec.dtype)
        run.device.write(record.trajectory, 0, values)
    return record
