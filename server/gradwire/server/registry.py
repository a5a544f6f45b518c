"""Runs by name."""

from __future__ import annotations

import asyncio
import uuid
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwire.server.config import ServerConfig
from gradwire.server.devices.base import Device
from gradwire.server.memory import MemoryBudget
from gradwire.server.run import Run
from gradwire.server.spec import RunSpec
from gradwire.server.transfer import check_state, state_upload
from gradwire.server.upload import Upload
from gradwire.server.workers import check_id
from gradwire.wire.errors import Draining, ProtocolViolation, RunAlreadyExists, RunNotFound, TooManyParameters, shorten
from gradwire.wire.layout import MAX_ELEMENTS, Layout

MAX_PAGE = 1000


@dataclass(eq=False)
class Creation:
    """A run that is not visible yet; its initial values are still arriving."""

    run: Run
    upload: Upload
    replace: bool
    published: bool = False
    slots: Upload | None = None
    """The initial optimizer state, where there is one."""

    def begin_with(self, slots: Sequence[str], step: int, tensor_steps: Sequence[int]) -> None:
        """The run begins with a state, of which ``slots`` (in this order) will arrive. Raises ProtocolViolation."""
        run = self.run
        run.tensor_steps = check_state(run, slots, step, tensor_steps)
        run.step = step
        self.slots = state_upload(run, [run.state.slots[name] for name in slots])

    def add_slot(self, slot: int, offset: int, data: bytes) -> None:
        """Takes a slice of a slot. Raises ProtocolViolation where no state was announced, InvalidSlice."""
        if self.slots is None:
            raise ProtocolViolation(
                "a slice of a slot, but the header has no state; expected slices of the values only"
            )
        self.slots.add(slot, offset, data)

    def require_complete(self) -> None:
        """Raises IncompleteValues when some element of the values or of the state has not arrived."""
        self.upload.require_complete()
        if self.slots is not None:
            self.slots.require_complete()

    def abandon(self) -> None:
        """Frees the run, unless it has become visible."""
        if not self.published:
            self.run.delete()


class Registry:
    """All runs of one server process, and what they share: device, memory, threads."""

    def __init__(self, config: ServerConfig, device: Device) -> None:
        self.config = config
        self.device = device
        self.budget = MemoryBudget(config.max_memory)
        self.executor = ThreadPoolExecutor(config.worker_threads, thread_name_prefix="gradwire-bulk")
        self.server_instance = uuid.uuid4().hex
        self.draining = False
        self._runs: dict[str, Run] = {}
        self._endings: set[asyncio.Task[None]] = set()

    def get(self, name: str, uid: str = "") -> Run:
        """The run ``runs/NAME``. Raises RunNotFound, also when ``uid`` is that of another run."""
        run = self._runs.get(name)
        if run is None:
            raise RunNotFound(f"there is no run {shorten(name)!r} on this server", run=shorten(name))
        if run.ended:
            del self._runs[name]
            run.require_alive()
        if uid and uid != run.uid:
            raise RunNotFound(f"{name} is another run now: the one that was meant has been replaced", run=name)
        return run

    def existing(self, name: str, request_id: str) -> Run | None:
        """The run that the same creation request has made before, if it has."""
        run = self._living(name)
        return run if run is not None and run.request_id == request_id else None

    def page(self, after: str, size: int) -> tuple[list[Run], str]:
        """Up to ``size`` runs (0: a whole page) whose names follow ``after``, and the next page's ``after``."""
        names = sorted(name for name, run in self._runs.items() if not run.ended)
        start = bisect_right(names, after)
        chosen = names[start : start + min(size or MAX_PAGE, MAX_PAGE)]
        more = start + len(chosen) < len(names)
        return [self._runs[name] for name in chosen], chosen[-1] if more else ""

    def check_size(self, layout: Layout) -> None:
        """Raises TooManyParameters before anything is allocated for a layout that is too large."""
        limit = min(self.config.max_parameters, MAX_ELEMENTS)
        if layout.elements > limit:
            raise TooManyParameters(
                f"the run has {layout.elements} elements; this server accepts at most {limit}", max_parameters=limit
            )

    def begin_creation(self, spec: RunSpec, request_id: str, replace: bool, wire: np.dtype[Any]) -> Creation:
        """Allocates a run. Raises RunAlreadyExists, TooManyParameters, MemoryLimitExceeded, Draining."""
        self.require_open()
        check_id("request_id", request_id)
        self._require_free(spec.name, replace)
        self.check_size(spec.layout)
        run = Run(spec, self.device, self.budget, self.executor, request_id)
        upload = Upload(self.device, spec.layout, [run.state.params], wire, "the initial values")
        return Creation(run, upload, replace)

    async def prepare(self, spec: RunSpec) -> None:
        """Compiles what the run's steps will call, in a thread: never at a step, never on the event loop."""

        def compile_all() -> None:
            self.device.warm_up([(kernel, spec.dtype) for kernel in {group.kernel for group in spec.groups}])
            for group in spec.groups:
                group.varying(1, 1, 1, spec.dtype)

        await asyncio.get_running_loop().run_in_executor(self.executor, compile_all)

    async def finish_creation(self, creation: Creation) -> Run:
        """Makes the run visible, in the place of an older one if that was asked for, and returns it.

        Where another attempt of the same creation was faster, its run stays and is returned.
        """
        creation.require_complete()
        run = creation.run
        earlier = self.existing(run.spec.name, run.request_id)
        if earlier is not None:
            return earlier
        self._require_free(run.spec.name, creation.replace)
        old = self._living(run.spec.name)
        self._runs[run.spec.name] = run
        creation.published = True
        if old is not None:
            await self._end(old)
        return run

    async def delete(self, name: str) -> int:
        """Deletes a run, after any commit that is under way; returns its step. Raises RunNotFound."""
        run = self.get(name)
        del self._runs[name]
        await self._end(run)
        return run.step

    async def _end(self, run: Run) -> None:
        """Deletes a run that nobody finds any more, also when the caller is cancelled."""
        ending = asyncio.ensure_future(run.exclusive.run(run.delete))
        self._endings.add(ending)  # the event loop itself keeps only weak references
        ending.add_done_callback(self._endings.discard)
        await asyncio.shield(ending)

    def require_open(self) -> None:
        """Raises Draining when the server is about to stop."""
        if self.draining:
            raise Draining("the server is about to stop and takes no further work")

    def _require_free(self, name: str, replace: bool) -> None:
        run = self._living(name)
        if run is not None and not replace:
            raise RunAlreadyExists(f"{name} exists already, at step {run.step}", run=name)

    def _living(self, name: str) -> Run | None:
        """The run of this name, unless it has ended: then its name, and what it held, are free."""
        run = self._runs.get(name)
        if run is not None and run.ended:
            run = None
            del self._runs[name]
        return run

    def close(self) -> None:
        """Waits for work in threads."""
        self.executor.shutdown()
        self.device.close()
