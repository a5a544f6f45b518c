"""Runs that nobody has used for their time to live end by themselves."""

from __future__ import annotations

import contextlib
import logging
import time

from gradwire.server.durability.changes import on_disk
from gradwire.server.durability.run_storage import storage_of
from gradwire.server.engine.periodic import again_and_again
from gradwire.server.engine.run import Run
from gradwire.server.runs.registry import Registry
from gradwire.wire.errors import GradwireError

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0

NOTE_SECONDS = 60.0
"""So much of a run's use may be forgotten when the server is killed."""


class Expiry:
    """Deletes what is over, and notes in the store when runs that can be over were used, for the next server."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def watch(self) -> None:
        """Looks again and again, until it is cancelled."""
        failure = "runs cannot be looked at for their times to live"
        await again_and_again(self.look, lambda: LOOK_SECONDS, log, failure)

    async def look(self) -> None:
        """Deletes the runs whose time is over."""
        for run in self._registry.living():
            if run.spec.ttl_seconds is None:
                continue
            try:
                if await self._registry.expire(run):
                    log.info("%s is deleted: nobody has used it for %g s", run.spec.name, run.spec.ttl_seconds)
                else:
                    await self._note(run, NOTE_SECONDS)
            except GradwireError as error:
                log.error("the time to live of %s: %s", run.spec.name, error)

    async def note_all(self) -> None:
        """Notes of all runs when they were used last. Never raises what a store does."""
        for run in self._registry.runs():
            with contextlib.suppress(GradwireError):
                await self._note(run, 0.0)

    async def _note(self, run: Run, least_seconds: float) -> None:
        """Unless what is noted is not older than ``least_seconds``."""
        storage = storage_of(run)
        if run.ended or run.spec.ttl_seconds is None or storage is None:
            return
        now = time.monotonic()
        used_at = now if run.in_use else run.used_at
        if used_at - storage.noted_use > least_seconds:
            await on_disk(storage.note_use(run.uid, time.time() - (now - used_at)))
            storage.noted_use = used_at
