"""The stored runs of a server: into the store, out of it, and back at the next start."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gradwire.server.config import ServerConfig
from gradwire.server.devices.base import Device
from gradwire.server.durability.changes import on_disk
from gradwire.server.durability.fingerprint import fingerprint, read_sources
from gradwire.server.durability.records import read_record, spec_to_text
from gradwire.server.durability.recovery_progress import RecoveryProgress
from gradwire.server.durability.restorer import Restorer, spec_of
from gradwire.server.durability.run_snapshot import snapshot_of
from gradwire.server.durability.run_storage import ENDED, RunStorage, reserved_bytes, used_at
from gradwire.server.durability.snapshotter import Snapshotter
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import Durability, RunSpec
from gradwire.server.engine.threads import in_thread
from gradwire.server.store.base import MAX_ENTRY_BYTES, Position, Store, StoredRun, Written
from gradwire.server.store.recovery import Unrecoverable, recover
from gradwire.wire.errors import GradwireError, InvalidSpec

log = logging.getLogger(__name__)

JOURNALED_BYTES = 2**20
"""Runs with at most so many bytes of parameters are journaled where nobody says otherwise."""

_JOURNAL_BYTES = 256 * 2**20
"""A snapshot is due when so much has been journaled, or eight times the parameters."""


@dataclass(frozen=True)
class DamagedRun:
    """A run that is stored, but could not be brought back."""

    name: str
    uid: str
    why: str
    disk_bytes: int = 0
    """Of its snapshots."""


@dataclass(frozen=True)
class FirstSnapshot:
    """Of a run that the store does not know yet, and what it will know it as."""

    stored: StoredRun
    written: Written


LOST_EPOCHS = 2**32
"""By so much the epoch of a shared run rises where steps were lost, or may have been. They may have been in epochs of
which nothing is left, and no worker may take what comes now for what it knows of those."""


class StoredRuns:
    """Those runs of a server that outlive it.

    Args:
        store: keeps the runs.
        device: computes the runs.
        runs: all runs that there are now.
        crowded: whether a run's owner uses more of the disk than it may.
    """

    def __init__(
        self,
        store: Store,
        device: Device,
        config: ServerConfig,
        runs: Callable[[], Iterable[Run]],
        crowded: Callable[[Run], bool],
    ) -> None:
        self.store = store
        self.snapshotter = Snapshotter(runs, config.snapshot_interval_seconds, crowded)
        self.snapshots_kept = config.snapshots_kept
        self.recovery = RecoveryProgress()
        self._device = device
        read_sources(device)
        self._snapshot_steps = config.snapshot_steps

    async def write_first(self, run: Run) -> FirstSnapshot | None:
        """Writes the first snapshot of a run that nobody sees yet; None for a run that lives in memory."""

        def write() -> FirstSnapshot:
            snapshot = snapshot_of(run, Position(0, b""), fingerprint(self._device, run.groups))
            stored = StoredRun(run.uid, run.spec.name, spec_to_text(run.spec), run.request_id, run.epoch)
            return FirstSnapshot(stored, self.store.write(run.uid, snapshot))

        if run.spec.durability is Durability.MEMORY:
            return None
        return await in_thread(run.lock.executor, write)

    def discard(self, first: FirstSnapshot | None) -> None:
        """Drops what `write_first` has written."""
        if first is not None:
            self.store.discard(first.written)

    async def create(self, run: Run, first: FirstSnapshot | None, replaces: str) -> None:
        """The run is stored from now on, in the place of the stored run with the uid ``replaces``, if any."""
        if first is not None:
            await on_disk(self.store.create(first.stored, first.written, replaces))
            self._note(run, first.written.snapshot.fingerprint)
        elif replaces:
            await self.delete(replaces)

    async def delete(self, uid: str) -> None:
        """Forgets a stored run."""
        await on_disk(self.store.delete(uid))

    def _note(self, run: Run, own: str, loss: str = "") -> RunStorage:
        """The run is in the store, as it is. Args: own: its fingerprint."""
        run.storage = storage = RunStorage(
            store=self.store,
            fingerprint=own,
            journals=run.spec.durability is Durability.JOURNAL,
            saved_version=run.changes,
            saved_step=run.step,
            due_after_steps=self._snapshot_steps,
            due_after_bytes=max(_JOURNAL_BYTES, 8 * run.spec.vector_bytes),
            wake=self.snapshotter.wake,
            loss=loss,
            reserved_bytes=reserved_bytes(run.spec, self.snapshots_kept),
        )
        storage.note_labelled(run.uid)
        run.on_delete.append(storage.free_room)
        return storage

    def restore(self, restorer: Restorer) -> Iterator[Run | DamagedRun]:
        """The stored runs, as they were acknowledged or as near to it as can be; what was lost is logged. Blocks;
        ``recovery`` says how far it is."""
        progress = self.recovery
        runs, damaged = self.store.runs(), self.store.damaged()
        progress.begin(len(damaged), [self._newest_bytes(stored.uid) for stored in runs])
        for loss in self.store.losses():
            log.error("%s", loss)
        for stored, why in damaged:
            log.error("%s is damaged: %s", stored.name, why)
            yield DamagedRun(stored.name, stored.uid, why, self._snapshot_bytes(stored.uid))
        for stored in runs:
            progress.begin_run(stored.name)
            started = time.perf_counter()
            try:
                spec = spec_of(stored)
                own = fingerprint(self._device, spec.groups)
                begin = progress.noting_snapshots(self.store, stored.uid, partial(restorer.begin, stored, spec))
                replay = progress.noting_blocks(restorer.replay)
                found = recover(self.store, stored.uid, own, begin, replay)
            except Unrecoverable as error:
                restorer.give_up()
                log.error("%s cannot be brought back: %s", stored.name, error)
                yield DamagedRun(stored.name, stored.uid, str(error), self._snapshot_bytes(stored.uid))
                continue
            run = restorer.finish()
            for note in found.notes:
                log.error("%s: %s", stored.name, note)
            if found.loss:
                log.error("%s goes on from step %d: %s", stored.name, found.step, found.loss)
            log.info(
                "%s is back at step %d, %d blocks of its journal applied, in %.3f s",
                stored.name,
                found.step,
                found.replayed,
                time.perf_counter() - started,
            )
            extra = read_record(stored.extra, "what is stored of it")
            if spec.shared is not None:
                try:
                    self._begin_epoch(run, extra, found.loss)
                except GradwireError as error:
                    run.delete()
                    log.error("%s cannot be brought back: %s", stored.name, error)
                    yield DamagedRun(stored.name, stored.uid, str(error), self._snapshot_bytes(stored.uid))
                    continue
            storage = self._note(run, own, found.loss)
            storage.extra = extra
            if run.spec.ttl_seconds is not None:
                run.used_at = used_at(storage.extra, run.spec.ttl_seconds)
            if found.replayed or found.notes:
                storage.saved_version = -1  # due: what it was made from is older
            yield run
        progress.end()

    def _newest_bytes(self, uid: str) -> int:
        snapshots = self.store.snapshots(uid)
        return snapshots[0].size_bytes if snapshots else 0

    def _begin_epoch(self, run: Run, extra: dict[str, Any], loss: str) -> None:
        """Lets the epoch of a shared run rise where workers may know of steps that are gone. Raises StorageFull,
        StorageFailed.

        Of a run that is not journaled nobody can tell after a power cut: the marks of what had been acknowledged may be
        gone too. So whatever did not end in order counts as lost. That it did is noted once, and taken back for good
        before the run is served again.
        """
        ended = extra.pop(ENDED, None)
        taken_back = None if ended is None else self.store.note_extra(run.uid, json.dumps(extra))
        if loss or (run.spec.durability is Durability.SNAPSHOT and ended != run.step):
            run.epoch += LOST_EPOCHS
            self.store.raise_epoch(run.uid, run.epoch).result()
        if taken_back is not None:
            taken_back.result()

    def _snapshot_bytes(self, uid: str) -> int:
        return sum(info.size_bytes for info in self.store.snapshots(uid))

    def close(self) -> None:
        """Gives the store back."""
        self.snapshotter.close()
        self.store.close()


def with_durability(spec: RunSpec, stores: bool) -> RunSpec:
    """The spec with a definite durability. Raises InvalidSpec for a promise that cannot be kept without a store."""
    if not stores:
        if spec.durability not in (None, Durability.MEMORY):
            raise InvalidSpec(
                f"durability {spec.durability.name} needs a server with a data directory (--data-dir); this one keeps "
                "runs in memory only"
            )
        return replace(spec, durability=Durability.MEMORY)
    if spec.durability is Durability.JOURNAL and spec.vector_bytes > MAX_ENTRY_BYTES:
        raise InvalidSpec(
            f"the run has {spec.vector_bytes} bytes of parameters; with durability JOURNAL at most {MAX_ENTRY_BYTES}"
        )
    if spec.durability is not None:
        return spec
    small = spec.vector_bytes <= JOURNALED_BYTES
    return replace(spec, durability=Durability.JOURNAL if small else Durability.SNAPSHOT)
