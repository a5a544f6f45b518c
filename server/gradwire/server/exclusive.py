"""The lock of a run, and the rule that what has begun in a thread runs to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

BULK_ELEMENTS = 65_536
"""Element updates from which work leaves the event loop; below that, the hop to a thread costs more than the work."""


class Exclusive:
    """Runs functions one at a time.

    A caller that is cancelled while it waits for its turn gives it up. Once its function has begun, it stays, and the
    lock with it, until the worker thread has returned: otherwise the next holder would read what a kernel is still
    writing. After a cancellation the function has therefore either run whole or not at all.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = asyncio.Lock()

    async def run(self, function: Callable[[], T], *, work: int = 0) -> T:
        """Result of ``function()``; ``work`` (element updates) decides whether it leaves the event loop."""
        if work < BULK_ELEMENTS and not self._lock.locked():
            return function()  # nothing else can run before it returns
        async with self._lock:
            if work < BULK_ELEMENTS:
                return function()
            return await in_thread(self._executor, function)


async def in_thread(executor: Executor, function: Callable[[], T]) -> T:
    """Result of ``function()`` in a thread. A caller that is cancelled stays until the function has ended, so that
    nothing is freed or handed on while the thread works on it."""
    work = asyncio.get_running_loop().run_in_executor(executor, function)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({work})
        raise
