"""The log says when a worker has waited for long for what should take a moment: once, until that has moved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from gradwire.server.engine.activity import Attached, WaitsFor
from gradwire.server.engine.periodic import again_and_again
from gradwire.server.engine.run import Run

log = logging.getLogger(__name__)

STALL_SECONDS = 30.0

LOOK_SECONDS = 5.0
"""Less than that, or what has moved for a moment would not be seen to have."""

STALLS = frozenset(
    {WaitsFor.GRADIENTS, WaitsFor.LOCK, WaitsFor.DEVICE, WaitsFor.DISK, WaitsFor.READER},
)
"""Not that its next block does not come, or that it may not send it yet; of rounds the log says what they wait for."""

_RUNS_AT_ONCE = 100
"""Are looked at before others get to work: in less than a millisecond."""


class Stalls:
    """Looks at all workers that are attached.

    Args:
        runs: those that there are; cheap.
    """

    def __init__(self, runs: Callable[[], Sequence[Run]]) -> None:
        self._runs = runs

    async def watch(self) -> None:
        """Again and again, until it is cancelled."""
        await again_and_again(self.look, lambda: LOOK_SECONDS, log, "nobody can be looked at who may be stalled")

    async def look(self) -> None:
        """At each of them once."""
        runs = self._runs()
        for start in range(0, len(runs), _RUNS_AT_ONCE):
            for run in runs[start : start + _RUNS_AT_ONCE]:
                for worker in run.holders:
                    _look_at(run, worker)
            await asyncio.sleep(0)


def _look_at(run: Run, worker: Attached) -> None:
    wait = worker.wait()
    stalled = wait is not None and wait.kind in STALLS and wait.seconds >= STALL_SECONDS
    if wait is not None and stalled and not worker.stall_told:
        log.warning("%s: worker %r has waited %.0f s for %s", run.spec.name, worker.worker_id, wait.seconds, wait.text)
    worker.stall_told = stalled
