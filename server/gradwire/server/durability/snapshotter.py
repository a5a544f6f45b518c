"""When snapshots are taken: on a clock, after so many steps or so much journal, when asked for, and at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from gradwire.server.devices.base import State
from gradwire.server.durability.changes import on_disk, record
from gradwire.server.durability.run_snapshot import copied, room_for, snapshot_of
from gradwire.server.durability.run_storage import RunStorage, storage_of
from gradwire.server.engine.run import Run
from gradwire.server.engine.run_events import EventKind
from gradwire.server.engine.threads import to_the_end
from gradwire.server.memory.budget import NO_ROOM
from gradwire.server.metrics.histogram import FILE_SECONDS, Histogram
from gradwire.server.store.base import Snapshot, SnapshotInfo, Written
from gradwire.wire.errors import GradwireError, RunNotFound

log = logging.getLogger(__name__)

_LONGEST_TICK_SECONDS = 1.0

LEAST_JOURNAL_BYTES = 2**20
"""A journal that is smaller is not worth a snapshot, however little room there is."""


@dataclass
class Costs:
    """What snapshots have cost so far; training stands still for the pauses, the rest goes on beside it."""

    snapshots: int = 0
    pause_seconds: float = 0.0
    longest_pause_seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of the threads that write."""
    bytes: int = 0
    failures: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(FILE_SECONDS))
    """How long each took to be written."""


class Snapshotter:
    """Takes the snapshots of a server's runs, one at a time.

    Args:
        runs: all runs that there are now.
        interval_seconds: how often a run that has changed is saved.
        crowded: whether a run's journal should go, which is more than `LEAST_JOURNAL_BYTES`, before its time.
    """

    def __init__(
        self,
        runs: Callable[[], Iterable[Run]],
        interval_seconds: float,
        crowded: Callable[[Run], bool] = lambda run: False,
    ) -> None:
        self._crowded = crowded
        self._runs = runs
        self._interval_seconds = interval_seconds
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="gradwire-snapshots")
        self._due = asyncio.Event()
        self._busy = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.costs = Costs()

    def wake(self) -> None:
        """Some run is due before its time. May be called from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._due.set)

    async def watch(self) -> None:
        """Saves what is due, until it is cancelled."""
        self._loop = asyncio.get_running_loop()
        tick_seconds = min(_LONGEST_TICK_SECONDS, self._interval_seconds / 4)
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._due.wait(), tick_seconds)
            self._due.clear()
            now = time.monotonic()
            for run in list(self._runs()):
                storage = storage_of(run)
                if storage is None or run.ended or run.changes == storage.saved_version:
                    continue
                old = now - storage.saved_at >= self._interval_seconds
                if old or storage.due(run.step) or self._is_crowded(run, storage):
                    await self._try_to_save(run, storage)

    def _is_crowded(self, run: Run, storage: RunStorage) -> bool:
        large = storage.journal_bytes + storage.older_journal_bytes >= LEAST_JOURNAL_BYTES
        return large and time.monotonic() >= storage.put_off_until and self._crowded(run)

    async def _try_to_save(self, run: Run, storage: RunStorage) -> None:
        """Saves a run that is due; where that fails, it is due again an interval later."""
        try:
            await self.save(run)
            return
        except RunNotFound:  # it has been deleted meanwhile
            return
        except GradwireError as error:
            log.error("%s could not be saved, and will be tried again: %s", run.spec.name, error)
        except Exception:
            log.exception("%s could not be saved, and will be tried again", run.spec.name)
        self.costs.failures += 1
        storage.put_off()

    async def save(self, run: Run, label: str = "") -> SnapshotInfo:
        """Takes a snapshot of a run now. Raises RunNotFound, StorageFull, StorageFailed.

        A caller that is cancelled stays: what has been written must be recorded, or nobody would ever remove it.
        """
        return await to_the_end(asyncio.ensure_future(self._save(run, label)))

    async def _save(self, run: Run, label: str) -> SnapshotInfo:
        storage = storage_of(run)
        assert storage is not None
        async with self._busy:
            try:
                room, cpu_seconds = await self._room(run, storage)
                snapshot, version = await self._copy(run, storage, room)
                written = await self._write(run, storage, snapshot, cpu_seconds)
            except NO_ROOM:
                log.warning("no memory for a copy of %s: its steps wait while it is saved", run.spec.name)
                return await self._save_in_place(run, storage, label)
            finally:
                if run.ended or run.budget.free_bytes < run.budget.limit_bytes // 4:
                    storage.free_room()
            info = await record(storage.store, run.uid, written, label=label)
            storage.saved(version, info.step)
        run.events.note(EventKind.SNAPSHOT, snapshot_text(info), info.step)
        return info

    async def _room(self, run: Run, storage: RunStorage) -> tuple[State, float]:
        """Room for a copy, and the processor time of making it.

        It stays for the next snapshot, since touching new memory costs more than all the rest, unless memory is scarce.
        """

        def make() -> tuple[State, float]:
            before = time.thread_time()
            return room_for(run), time.thread_time() - before

        if storage.room is not None:
            return storage.room, 0.0
        size_bytes = run.spec.state_bytes
        storage.room_memory = run.budget.reserve(size_bytes, f"a copy of {run.spec.name}")
        try:
            room, seconds = await to_the_end(asyncio.get_running_loop().run_in_executor(self._writing, make))
        except BaseException:
            storage.free_room()
            raise
        storage.room = room
        return room, seconds

    async def _copy(self, run: Run, storage: RunStorage, room: State) -> tuple[Snapshot, int]:
        """The copy, and `Run.changes` of then."""

        def copy() -> tuple[Snapshot, int, float]:
            started = time.perf_counter()
            run.require_alive()
            snapshot = snapshot_of(run, storage.store.position(run.uid), storage.fingerprint, copied(run, room))
            return snapshot, run.changes, time.perf_counter() - started

        snapshot, version, seconds = await run.lock.run(copy, work=sys.maxsize)
        self.costs.pause_seconds += seconds
        self.costs.longest_pause_seconds = max(self.costs.longest_pause_seconds, seconds)
        log.info("%s copied at step %d, its steps waited %.3f ms", run.spec.name, snapshot.step, seconds * 1000)
        return snapshot, version

    async def _write(self, run: Run, storage: RunStorage, snapshot: Snapshot, cpu_seconds: float = 0.0) -> Written:
        def write() -> Written:
            started, before = time.perf_counter(), time.thread_time()
            written = storage.store.write(run.uid, snapshot)
            seconds, cpu = time.perf_counter() - started, cpu_seconds + time.thread_time() - before
            self.costs.cpu_seconds += cpu
            self.costs.snapshots += 1
            self.costs.seconds.observe(seconds)
            self.costs.bytes += written.size_bytes
            log.info(
                "%s saved at step %d: %d bytes in %.3f s, with %.3f s of processor time",
                run.spec.name,
                snapshot.step,
                written.size_bytes,
                seconds,
                cpu,
            )
            return written

        return await to_the_end(asyncio.get_running_loop().run_in_executor(self._writing, write))

    async def _save_in_place(self, run: Run, storage: RunStorage, label: str = "") -> SnapshotInfo:
        async def save() -> SnapshotInfo:
            run.require_alive()
            snapshot = snapshot_of(run, storage.store.position(run.uid), storage.fingerprint)
            written = await self._write(run, storage, snapshot)
            info = await record(storage.store, run.uid, written, label=label)
            storage.saved(run.changes, info.step)
            run.events.note(EventKind.SNAPSHOT, snapshot_text(info), info.step)
            return info

        return await run.lock.run_through(save)

    async def save_last(self) -> None:
        """Saves all that has changed since its last snapshot, and lets nothing change any more. Never raises."""
        for run in list(self._runs()):
            storage = storage_of(run)
            if storage is None or run.ended:
                continue
            try:
                async with self._busy:
                    run.closing = True
                    storage.free_room()
                    if run.changes != storage.saved_version:
                        await self._save_in_place(run, storage)
                    if run.spec.shared is not None and not storage.journals:
                        await on_disk(storage.note_end(run.uid, run.step))
            except GradwireError as error:
                what = "its journal remains" if storage.journals else f"it is stored as of step {storage.saved_step}"
                log.error("%s could not be saved: %s; %s", run.spec.name, error, what)

    def close(self) -> None:
        self._writing.shutdown()


def snapshot_text(info: SnapshotInfo) -> str:
    """A snapshot that has been taken, in words."""
    return f"number {info.id}, {info.label}" if info.label else f"number {info.id}"
