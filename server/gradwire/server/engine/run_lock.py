"""The lock of a run: one function at a time, and the next one only when the thread of the last one has returned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from gradwire.server.engine.threads import is_short, to_the_end, unless_short

T = TypeVar("T")


class RunLock:
    """Runs functions one at a time.

    A caller that is cancelled while it waits for its turn gives it up. Once its function has begun, it stays, and the
    lock with it, until the worker thread has returned: otherwise the next holder would read what a kernel is still
    writing. After a cancellation the function has therefore either run whole or not at all.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._lock = asyncio.Lock()

    @property
    def locked(self) -> bool:
        """Whether somebody holds it."""
        return self._lock.locked()

    async def run(self, function: Callable[[], T], *, work: int = 0) -> T:
        """Result of ``function()``; ``work`` (element updates) decides whether it leaves the event loop."""
        if is_short(work) and not self._lock.locked():
            return function()  # nothing else can run before it returns
        async with self._lock:
            return await self.inside(function, work=work)

    async def inside(self, function: Callable[[], T], *, work: int = 0) -> T:
        """As `run`, for who holds the lock already."""
        return await unless_short(self.executor, function, work)

    async def acquire(self) -> None:
        """Takes the lock, for who will `release` it."""
        await self._lock.acquire()

    def release(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Holds the lock over what waits in between and may be given up at each wait."""
        async with self._lock:
            yield

    async def run_through(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Result of the coroutine that ``make()`` returns, for work that waits in between (for the disk) and must not
        be given up once it has begun: a caller that is cancelled stays until it has ended, and the lock with it."""
        async with self._lock:
            return await to_the_end(asyncio.ensure_future(make()))
