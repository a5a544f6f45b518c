"""The lock of a run, and the rule that what has begun in a thread runs to its end."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from concurrent.futures import Future as ConcurrentFuture
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")

BULK_ELEMENTS = 600_000
"""Element updates from which work leaves the event loop. Those of a slice stay: they take half a millisecond, and the
way to a thread and back, past everything else that wants the interpreter, was measured to take as long or longer."""


class Exclusive:
    """Runs functions one at a time.

    A caller that is cancelled while it waits for its turn gives it up. Once its function has begun, it stays, and the
    lock with it, until the worker thread has returned: otherwise the next holder would read what a kernel is still
    writing. After a cancellation the function has therefore either run whole or not at all.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._lock = asyncio.Lock()

    async def run(self, function: Callable[[], T], *, work: int = 0) -> T:
        """Result of ``function()``; ``work`` (element updates) decides whether it leaves the event loop."""
        if work < BULK_ELEMENTS and not self._lock.locked():
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


async def to_the_end(work: asyncio.Future[T]) -> T:
    """Result of ``work``. A caller that is cancelled stays until it has ended."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({work})
        if not work.cancelled():
            work.exception()  # there is nobody left to be told
        raise


async def outlast(future: ConcurrentFuture[Any]) -> asyncio.CancelledError | None:
    """Waits until ``future``, which cannot be cancelled, is done. Returns the cancellation that came meanwhile, for the
    caller to raise when it has finished what must not be left half done.

    As `to_the_end`, without a task and its turns of the event loop: those are a good part of a short commit.
    """
    interrupted = None
    loop = asyncio.get_running_loop()
    while not future.done():
        waiter = loop.create_future()
        future.add_done_callback(functools.partial(_wake, loop, waiter))
        try:
            await waiter
        except asyncio.CancelledError as error:
            interrupted = error
    return interrupted


def _wake(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None], _: ConcurrentFuture[Any]) -> None:
    with suppress(RuntimeError):  # the loop has ended, and everybody in it
        loop.call_soon_threadsafe(_settle, waiter)


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def unless_short(executor: Executor, function: Callable[[], T], work: int) -> T:
    """Result of ``function()``, in a thread unless ``work`` (element updates) is short."""
    return function() if work < BULK_ELEMENTS else await in_thread(executor, function)


def updates(elements: int, steps: int) -> int:
    """The work of ``steps`` updates of ``elements``; of a few elements each takes as long as of some more."""
    return max(elements, 16) * steps


async def in_thread(executor: Executor, function: Callable[[], T]) -> T:
    """Result of ``function()`` in a thread. A caller that is cancelled stays until the function has ended, so that
    nothing is freed or handed on while the thread works on it."""
    return await to_the_end(asyncio.get_running_loop().run_in_executor(executor, function))
