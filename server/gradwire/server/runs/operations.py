"""What can be done with a whole run besides training it: snapshots, forks, going back, hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from gradwire.server.access.identity import tenant_of
from gradwire.server.durability import changes
from gradwire.server.durability.records import groups_from_data, spec_to_text
from gradwire.server.durability.restorer import fill_state
from gradwire.server.durability.run_snapshot import PARAMETERS, copied, room_for, snapshot_of
from gradwire.server.durability.run_storage import RunStorage, snapshot_bytes, storage_of
from gradwire.server.durability.snapshotter import Snapshotter, snapshot_text
from gradwire.server.engine.run import Run, Values
from gradwire.server.engine.run_events import EventKind
from gradwire.server.engine.spec import Durability
from gradwire.server.engine.staged_block import override_groups
from gradwire.server.engine.threads import in_thread
from gradwire.server.optimizers.base import Hyperparameters
from gradwire.server.runs.creation import Creation
from gradwire.server.runs.registry import Registry
from gradwire.server.store.base import Position, Snapshot, SnapshotDamaged, SnapshotInfo, Store, StoredRun
from gradwire.wire.errors import InvalidHyperparameter, ProtocolViolation, RunDamaged, SnapshotNotFound

MAX_LABEL_BYTES = 128
NOW = 0
"""In the place of a snapshot's id: the run as it is."""


async def save(registry: Registry, run: Run, label: str) -> SnapshotInfo:
    """Takes a snapshot that is kept until the run is deleted. Raises StorageFull, MemoryLimitExceeded and the like."""
    if len(label.encode()) > MAX_LABEL_BYTES:
        raise ProtocolViolation(f"the label has {len(label.encode())} bytes; expected at most {MAX_LABEL_BYTES}")
    storage = storage_of(run)
    if registry.stored_runs is not None and storage is not None:
        return await _save_on_disk(registry, registry.stored_runs.snapshotter, run, storage, label or "saved")
    return await _save_in_memory(registry, run, label or "in memory")


async def _save_on_disk(
    registry: Registry, snapshotter: Snapshotter, run: Run, storage: RunStorage, label: str
) -> SnapshotInfo:
    tenant, size_bytes = tenant_of(run.spec.name), snapshot_bytes(run.spec)
    registry.disk_use.require(tenant, size_bytes, "the snapshot")
    storage.saving_bytes += size_bytes
    try:
        return await snapshotter.save(run, label)
    finally:
        storage.saving_bytes -= size_bytes
        if not run.ended:
            storage.note_labelled(run.uid)


async def _save_in_memory(registry: Registry, run: Run, label: str) -> SnapshotInfo:
    store = registry.memory_store
    size_bytes = run.spec.state_bytes
    reservation = run.budget.reserve(size_bytes, f"a snapshot of {run.spec.name}")
    try:
        async with source(registry, run, NOW) as snapshot:
            written = await in_thread(registry.executor, partial(store.write, run.uid, snapshot))
        spec = await in_thread(registry.executor, partial(spec_to_text, run.spec))
        run.require_alive()  # and nothing waits until it is recorded
        if any(stored.uid == run.uid for stored in store.runs()):
            info = store.record(run.uid, written, label=label).result()
        else:
            stored = StoredRun(run.uid, run.spec.name, spec, run.request_id)
            info = store.create(stored, written, label=label).result()
            run.on_delete.append(lambda: store.delete(run.uid))
    except BaseException:
        reservation.release()
        raise
    run.on_delete.append(reservation.release)
    run.events.note(EventKind.SNAPSHOT, snapshot_text(info), info.step)
    return info


def listed(registry: Registry, run: Run) -> list[SnapshotInfo]:
    """The snapshots of a run, the newest first."""
    try:
        return _store_of(registry, run).snapshots(run.uid)
    except KeyError:  # a run in memory of which none has been taken
        return []


def _store_of(registry: Registry, run: Run) -> Store:
    storage = storage_of(run)
    return registry.memory_store if storage is None else storage.store


@asynccontextmanager
async def source(registry: Registry, run: Run, snapshot_id: int) -> AsyncIterator[Snapshot]:
    """A whole run as it is now (NOW), or as it was. Raises SnapshotNotFound, RunDamaged for a damaged snapshot."""
    if snapshot_id != NOW:
        yield await in_thread(registry.executor, partial(_load, _store_of(registry, run), run, snapshot_id))
        return

    size_bytes = run.spec.state_bytes
    with run.budget.reserve(size_bytes, f"a copy of {run.spec.name}"):
        room = await in_thread(registry.executor, partial(room_for, run))

        def copy() -> Snapshot:
            run.require_alive()
            return snapshot_of(run, Position(0, b""), "", copied(run, room))

        yield await run.lock.run(copy, work=size_bytes // run.spec.dtype.itemsize)


def _load(store: Store, run: Run, snapshot_id: int) -> Snapshot:
    try:
        return store.load(run.uid, snapshot_id)
    except KeyError:
        raise SnapshotNotFound(f"{run.spec.name} has no snapshot {snapshot_id}", run=run.spec.name) from None
    except SnapshotDamaged as error:
        raise RunDamaged(f"snapshot {snapshot_id} of {run.spec.name} is damaged: {error}") from error


async def roll_back(registry: Registry, run: Run, snapshot_id: int) -> tuple[int, int]:
    """Puts a run back to a snapshot; returns (step, epoch). Sequences of workers do not go back.

    Raises SnapshotNotFound, RunDamaged for a damaged snapshot, StorageFull and the like; then nothing has changed.
    """
    if snapshot_id == NOW:
        raise SnapshotNotFound(f"{run.spec.name} has no snapshot {NOW}", run=run.spec.name)
    spec = run.spec
    size_bytes = spec.state_bytes

    def make(snapshot: Snapshot) -> Values:
        state = run.device.allocate_state(spec.slots, spec.layout.elements, spec.dtype)
        return fill_state(spec, run.device, state, snapshot)

    with registry.budget.reserve(size_bytes, f"new values of {spec.name}"):  # no quota stands in the way back
        async with source(registry, run, snapshot_id) as snapshot:
            values = await in_thread(registry.executor, partial(make, snapshot))
        before = run.step
        step, epoch = await changes.put(run, "the values", lambda: values)
        run.events.note(EventKind.ROLLED_BACK, f"from step {before} to snapshot {snapshot_id}", step)
        return step, epoch


async def fork(
    registry: Registry,
    run: Run,
    snapshot_id: int,
    name: str,
    request_id: str,
    *,
    replaces: bool,
    groups: Sequence[Hyperparameters],
    overrides: Mapping[int, Mapping[str, float]],
    durability: Durability | None,
) -> tuple[Run, bool]:
    """A new run from another or from a snapshot of it; returns it, and whether it is new.

    Args:
        groups: the hyperparameters of each group; empty: those in force.
        overrides: numbers that change on top of that.

    Raises InvalidHyperparameter, and what creation and `source` raise.
    """
    existing = registry.existing(name, request_id)
    if existing is not None:
        return existing, False
    if groups and len(groups) != len(run.groups):
        raise InvalidHyperparameter(f"{len(groups)} groups are given; {run.spec.name} has {len(run.groups)}")
    async with source(registry, run, snapshot_id) as snapshot:
        chosen = tuple(groups) or groups_of(snapshot)
        spec = replace(
            run.spec,
            name=name,
            groups=override_groups(chosen, overrides),
            durability=durability or run.spec.durability,
        )
        if spec.slots != run.spec.slots:
            raise InvalidHyperparameter(
                f"with these hyperparameters the run would have the slots {list(spec.slots)}; expected "
                f"{list(run.spec.slots)}, as {run.spec.name} has them"
            )
        creation = registry.begin_creation(spec, request_id, replaces, None)
        creation.origin = f"from {run.spec.name} at step {snapshot.step}"
        try:
            await registry.prepare(creation.run)
            await in_thread(registry.executor, partial(_begin_with, creation, snapshot))
            made = await registry.finish_creation(creation)
        finally:
            creation.abandon()
    return made, made is creation.run


def _begin_with(creation: Creation, snapshot: Snapshot) -> None:
    run = creation.run
    values = fill_state(run.spec, run.device, run.state, snapshot)
    run.step, run.tensor_steps = values.step, values.tensor_steps
    run.series.load(values.series or {})


def groups_of(snapshot: Snapshot) -> tuple[Hyperparameters, ...]:
    """The hyperparameters that were in force."""
    return groups_from_data(json.loads(snapshot.meta)["groups"])


async def digest(registry: Registry, run: Run) -> tuple[str, int]:
    """(SHA-256, step); see ``gradwire.v1.DigestRunResponse``."""
    async with source(registry, run, NOW) as snapshot:
        return await in_thread(registry.executor, partial(_digest, run, snapshot)), snapshot.step


def _digest(run: Run, snapshot: Snapshot) -> str:
    sha256 = hashlib.sha256()
    for name in (PARAMETERS, *run.spec.slots):
        for piece in snapshot.vectors[name].pieces():
            sha256.update(np.ascontiguousarray(piece).view(np.uint8).data)
    sha256.update(tensor_steps_of(snapshot).astype("<u8").tobytes())
    sha256.update(run.spec.dtype.name.encode())
    return sha256.hexdigest()


def tensor_steps_of(snapshot: Snapshot) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Steps applied to each tensor."""
    return np.array(json.loads(snapshot.meta)["tensor_steps"], np.int64)
