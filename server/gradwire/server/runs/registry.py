"""Runs by name: made, put in the place of others, deleted, brought back."""

from __future__ import annotations

import asyncio
import uuid
import weakref
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np

from gradwire.server.access.gate import Gate
from gradwire.server.access.identity import tenant_of
from gradwire.server.access.ledger import Ledger
from gradwire.server.config import ServerConfig
from gradwire.server.devices.base import Device
from gradwire.server.durability.restorer import Restorer
from gradwire.server.durability.run_storage import storage_of
from gradwire.server.durability.stored_runs import DamagedRun, FirstSnapshot, StoredRuns, with_durability
from gradwire.server.engine.initial_state import begins_with_zeros, prime
from gradwire.server.engine.run import Run
from gradwire.server.engine.run_events import EventKind, RunEvents
from gradwire.server.engine.spec import RunSpec
from gradwire.server.engine.threads import in_thread
from gradwire.server.engine.workers import check_id
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.metrics.counters import RECOVERY, Counters
from gradwire.server.runs.creation import Creation
from gradwire.server.runs.disk_use import DiskUse
from gradwire.server.runs.run_table import RunTable
from gradwire.server.runs.upload import Upload
from gradwire.server.store.base import Store
from gradwire.server.store.memory import MemoryStore
from gradwire.wire.errors import (
    Draining,
    GradwireError,
    Starting,
    TooManyParameters,
)
from gradwire.wire.layout import MAX_ELEMENTS, Layout

T = TypeVar("T")

EXPIRED = "was deleted: nobody had used it for its time to live"


class Registry(RunTable):
    """All runs of one server process, and what they share: device, memory, threads, the store.

    Args:
        store: where runs outlive the process; None: nowhere. With one, `recover` comes first.
        gate: knows the quotas of tenants; None: there are none.
    """

    def __init__(
        self, config: ServerConfig, device: Device, store: Store | None = None, gate: Gate | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.device = device
        self.budget = MemoryBudget(config.max_memory)
        self.ledger = Ledger(self.budget, gate)
        self._creations: weakref.WeakSet[Creation] = weakref.WeakSet()
        self.executor = ThreadPoolExecutor(config.worker_threads, thread_name_prefix="gradwire-bulk")
        self.server_instance = uuid.uuid4().hex
        self.draining = False
        self.counters = Counters()
        self._ready = store is None
        kept = None if store is None else config.snapshots_kept
        self.disk_use = DiskUse(self.ledger, kept, self._runs, self._damaged, self._creations)
        self.stored_runs: StoredRuns | None = None
        self.memory_store = MemoryStore()
        """Has the snapshots of runs that live in memory."""
        if store is not None:
            self.stored_runs = StoredRuns(store, device, config, self.runs, self.disk_use.is_crowded)
        self._structure = asyncio.Lock()
        """Held while the store learns which runs there are."""
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- creation and deletion ---------------------------------------------------------------------------------------

    def check_size(self, layout: Layout) -> None:
        """Raises TooManyParameters before anything is allocated for a layout that is too large."""
        limit = min(self.config.max_parameters, MAX_ELEMENTS)
        if layout.elements > limit:
            raise TooManyParameters(
                f"the run has {layout.elements} elements; this server accepts at most {limit}", max_parameters=limit
            )

    def begin_creation(self, spec: RunSpec, request_id: str, replace: bool, wire: np.dtype[Any] | None) -> Creation:
        """Allocates a run; ``wire`` is the dtype in which its values will arrive, None where they come otherwise.

        Raises RunAlreadyExists, InvalidSpec, TooManyParameters, MemoryLimitExceeded, Draining."""
        self.require_open()
        check_id("request_id", request_id)
        self._require_free(spec.name, replace)
        self.check_size(spec.layout)
        tenant = tenant_of(spec.name)
        held = self.held(tenant)
        more = len(held | {spec.name}) - len(held)
        self.ledger.require_run(tenant, len(held), more, spec.layout.elements, len(spec.layout.names))
        spec = with_durability(spec, self.stored_runs is not None)
        self.disk_use.require_run(spec)
        run = Run(spec, self.device, self.ledger.budget_of(tenant), self.executor, request_id)
        upload = None
        if wire is not None:
            upload = Upload(self.device, spec.layout, [run.state.params], wire, "the initial values")
        creation = Creation(run, upload, replace)
        self._creations.add(creation)
        return creation

    def held(self, tenant: str) -> set[str]:
        """Runs of a tenant that are there, or on their way: also while they are being written to the disk."""
        names = {*self.names(), *(creation.run.spec.name for creation in self._creations if not creation.run.ended)}
        return {name for name in names if tenant_of(name) == tenant}

    async def prepare(self, run: Run) -> None:
        """Compiles what the run's steps will call, in a thread: never at a step, never on the event loop. Puts into its
        state what that begins with."""
        await asyncio.get_running_loop().run_in_executor(self.executor, self._compile, run.spec)
        if not begins_with_zeros(run):
            await in_thread(self.executor, partial(prime, run))

    def _compile(self, spec: RunSpec) -> None:
        spec.layout.columns  # noqa: B018  # they are made once, and not at the first step
        self.device.warm_up([(kernel, spec.dtype) for kernel in {group.kernel for group in spec.groups}])
        if spec.shared is not None:
            self.device.warm_up_combining(spec.dtype)
        for group in spec.groups:
            group.varying(1, 1, 1, spec.dtype)

    async def finish_creation(self, creation: Creation) -> Run:
        """Makes the run visible, in the place of an older one if that was asked for, and returns it.

        Where another attempt of the same creation was faster, its run stays and is returned.
        """
        creation.require_complete()
        run = creation.run
        run.events.note(EventKind.CREATED, creation.origin, run.step)
        earlier = self.existing(run.spec.name, run.request_id)
        if earlier is not None:
            return earlier
        self._require_free(run.spec.name, creation.replace)
        if self.stored_runs is not None:
            creation.published = True  # from here on it is `_publish` that frees the run where it comes to nothing
            return await self._to_the_end(self._publish(self.stored_runs, creation))
        old = self._living(run.spec.name)
        self._runs[run.spec.name] = run
        creation.published = True
        if old is not None:
            await self._to_the_end(old.lock.run(old.delete))
        return run

    async def _publish(self, stored: StoredRuns, creation: Creation) -> Run:
        """As `finish_creation`, with the values on disk first."""
        run, name = creation.run, creation.run.spec.name
        first = await stored.write_first(run)
        try:
            async with self._structure:
                earlier = self.existing(name, run.request_id)
                if earlier is None:
                    self._require_free(name, creation.replace)
                    await self._take_place(stored, run, first)
                    return run
        except BaseException as error:
            run.delete()
            if not isinstance(error, GradwireError) or error.applied is False:
                stored.discard(first)  # else the store may refer to it
            raise
        run.delete()
        stored.discard(first)
        return earlier

    async def _take_place(self, stored: StoredRuns, run: Run, first: FirstSnapshot | None) -> None:
        """The new run instead of the old one: first in the store, in one transaction, then for all to see."""
        name = run.spec.name
        old = self._living(name)
        replaces = self._damaged[name].uid if name in self._damaged else ""
        if old is not None and old.storage is not None:
            replaces = old.uid

        async def swap() -> None:
            await stored.create(run, first, replaces)
            self._damaged.pop(name, None)
            self._runs[name] = run
            if old is not None:
                old.delete()

        await (swap() if old is None else old.lock.run_through(swap))

    async def expire(self, run: Run) -> bool:
        """Deletes a run if nobody has used it for its time to live; returns whether it has."""
        name = run.spec.name
        if self._runs.get(name) is not run or not run.expired:
            return False
        if self.stored_runs is not None:
            return await self._to_the_end(self._forget(self.stored_runs, name, only=run)) is not None
        del self._runs[name]
        await self._to_the_end(run.lock.run(lambda: run.delete(EXPIRED)))
        return True

    async def delete(self, name: str) -> int:
        """Deletes a run, after any commit that is under way; returns its step. Raises RunNotFound."""
        if self.stored_runs is not None:
            return await self._to_the_end(self._forget(self.stored_runs, name)) or 0
        run = self.get(name)
        del self._runs[name]
        await self._to_the_end(run.lock.run(run.delete))
        return run.step

    async def _forget(self, stored: StoredRuns, name: str, only: Run | None = None) -> int | None:
        """Args: only: this run, and only if its time is over; None is returned where it is not."""
        async with self._structure:
            self._living(name)
            if name in self._damaged:
                await stored.delete(self._damaged[name].uid)
                del self._damaged[name]
                return 0
            run = self.get(name)
            if only is not None and run is not only:
                return None

            async def forget() -> int | None:
                if only is not None and not run.expired:
                    return None
                if run.storage is not None:
                    await stored.delete(run.uid)
                del self._runs[name]
                run.delete("has been deleted" if only is None else EXPIRED)
                return run.step

            return await run.lock.run_through(forget)

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Result of ``work``, which runs to its end also when the caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the event loop itself keeps only weak references
        task.add_done_callback(self._note_done)
        await asyncio.wait({task})  # not a shield: see `to_the_end`
        return task.result()

    def _note_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # where the caller has gone there is nobody to be told

    # --- start and end -----------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Brings the stored runs back, and says what was lost; blocks. Until then nobody is served."""
        if self.stored_runs is not None:
            self.ledger.enforced = False  # what is there comes back, whatever the quotas have become
            restorer = Restorer(self.device, lambda name: self.ledger.budget_of(tenant_of(name)), self.executor)
            for found in self.stored_runs.restore(restorer):
                if isinstance(found, DamagedRun):
                    self._damaged[found.name] = found
                else:
                    self._compile(found.spec)
                    self._runs[found.spec.name] = found
                    storage = storage_of(found)
                    found.events = RunEvents()  # what was replayed had happened before
                    found.events.note(EventKind.RECOVERED, (storage and storage.loss) or "from the disk", found.step)
                    self.counters.rolled_back[RECOVERY] += bool(storage and storage.loss)
        self.ledger.enforced = True
        self._ready = True

    @property
    def ready(self) -> bool:
        """Whether the stored runs are back."""
        return self._ready

    def require_ready(self) -> None:
        """Raises Starting while the stored runs are not back yet."""
        if not self._ready:
            raise Starting("the server is still bringing its runs back")

    def require_open(self) -> None:
        """Raises Draining when the server is about to stop."""
        if self.draining:
            raise Draining("the server is about to stop and takes no further work")

    def close(self) -> None:
        """Waits for work in threads, and gives the store back."""
        self.executor.shutdown()
        if self.stored_runs is not None:
            self.stored_runs.close()
        self.device.close()
