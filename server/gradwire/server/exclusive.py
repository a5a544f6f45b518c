"""The lock of a run, and the rule that what has begun under it runs to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")

BULK_ELEMENTS = 65_536
"""Element updates from which work leaves the event loop; below that, the hop to a thread costs more than the work."""


class Exclusive:
    """Runs functions one at a time.

    Cancelling the caller does not cancel the function: it goes on in a task of its own, and the lock is released only
    when the worker thread has returned. Otherwise the next holder would read what a kernel is still writing.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[object]] = set()

    async def run(self, function: Callable[[], T], *, work: int = 0) -> T:
        """Result of ``function()``; ``work`` (element updates) decides whether it leaves the event loop."""
        if work < BULK_ELEMENTS and not self._lock.locked():
            return function()  # nothing else can run before it returns
        task = asyncio.ensure_future(self._locked(function, work))
        self._tasks.add(task)  # the event loop itself keeps only weak references
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def _locked(self, function: Callable[[], T], work: int) -> T:
        async with self._lock:
            if work < BULK_ELEMENTS:
                return function()
            return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def _finished(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may have been cancelled and will not ask for it
