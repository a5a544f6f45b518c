"""A run as a snapshot: its vectors, what is remembered of its workers, and its numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import Device, DeviceArray, State
from gradwire.server.durability.records import SHARED_VERSION, groups_to_data, receipt_to_data
from gradwire.server.engine.run import Run, Values
from gradwire.server.store.base import PIECE_BYTES, Position, Snapshot, Vector
from gradwire.wire.layout import Range

PARAMETERS = "parameters"
"""Name of the parameters' vector in a snapshot; a slot has its own, and a remembered trajectory RESULT and a number."""

RESULT = "result/"


def snapshot_of(
    run: Run, position: Position, fingerprint: str, values: Values | None = None, epoch: int | None = None
) -> Snapshot:
    """The run as it is, or with other values and another epoch; to be called under its lock.

    The vectors are read when the snapshot is written: pass copies of them where the run goes on meanwhile.
    """
    values = run.values if values is None else values
    arrays: dict[str, DeviceArray] = {PARAMETERS: values.state.params}
    arrays |= {name: values.state.slots[name] for name in run.spec.slots}
    workers = []
    for worker_id, record in run.workers.items():
        worker: dict[str, Any] = {"id": worker_id, "last_sequence": record.last_sequence, "receipt": None}
        if record.receipt is not None:
            worker["receipt"] = receipt_to_data(record.receipt)
            worker["returns"] = record.returns.name
            worker["steps"] = record.steps
            worker["ranges"] = record.ranges
        if run.spec.shared is not None:
            worker["last_accepted"] = record.last_accepted
        if record.last_log:
            worker["last_log"] = record.last_log
        if record.trajectory is not None:
            worker["result"] = f"{RESULT}{len(arrays)}"
            arrays[worker["result"]] = record.trajectory
        workers.append(worker)
    meta: dict[str, Any] = {
        "tensor_steps": values.tensor_steps.tolist(),
        "epoch": run.epoch if epoch is None else epoch,
        "groups": groups_to_data(values.groups),
        "workers": workers,
    }
    series = run.series.to_data(values.step) if values.series is None else values.series
    if series:
        meta["series"] = series
    if run.has_forgotten:
        meta["forgotten"] = True
    if run.spec.shared is not None:
        meta |= {"version": SHARED_VERSION, "rounds": run.rounds}
    vectors = {name: vector_of(run.device, array, run.spec.dtype) for name, array in arrays.items()}
    return Snapshot(values.step, position, fingerprint, json.dumps(meta), vectors)


def room_for(run: Run) -> State:
    """Room for `copied`, whose memory is there and not only promised; needs no lock. What it holds is of no use."""
    state = run.state
    return State(run.device.copy(state.params), {name: run.device.copy(state.slots[name]) for name in run.spec.slots})


def copied(run: Run, room: State) -> Values:
    """The run's values, copied into ``room``; to be called under its lock, and fast: the memory has been touched."""
    slots = {name: run.device.copy(run.state.slots[name], room.slots[name]) for name in run.spec.slots}
    params = run.device.copy(run.state.params, room.params)
    return Values(State(params, slots), run.step, run.tensor_steps.copy(), run.groups)


def vector_of(device: Device, array: DeviceArray, dtype: np.dtype[Any]) -> Vector:
    """A device's array, row after row; of one row: flat."""
    rows, length = array.shape
    step = max(1, PIECE_BYTES // dtype.itemsize)

    def pieces() -> Iterator[npt.NDArray[Any]]:
        for row in range(rows):
            for start in range(0, length, step):
                yield device.peek(array, Range(row, row + 1), Range(start, min(start + step, length)))[0]

    return Vector(dtype, (length,) if rows == 1 else (rows, length), pieces)


def fill(device: Device, target: DeviceArray, vector: Vector) -> None:
    """Writes a flat vector into ``target`` ``[1, length]``."""
    at = 0
    for piece in vector.pieces():
        device.write(target, at, piece.reshape(1, -1))
        at += piece.size


def state_vectors(vectors: Mapping[str, Vector]) -> set[str]:
    """Names of those vectors that are parameters or slots."""
    return {name for name in vectors if not name.startswith(RESULT)}
