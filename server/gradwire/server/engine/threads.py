"""What leaves the event loop, and the rule that what has begun in a thread runs to its end."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from concurrent.futures import Future as ConcurrentFuture
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

BULK_ELEMENTS = 600_000
"""Element updates from which work leaves the event loop. Those of a slice stay: they take half a millisecond, and the
way to a thread and back, past everything else that wants the interpreter, was measured to take as long or longer."""

_PIECE_UPDATES = 1_000
"""Element updates that take as long as one tensor, group or segment to which Python must come."""
_FEW_PIECES = 16


async def to_the_end(work: asyncio.Future[T]) -> T:
    """Result of ``work``. A caller that is cancelled stays until it has ended."""
    try:
        await asyncio.wait({work})  # from Python 3.14 on, a shield reports failures that its caller has left behind
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({work})
        if not work.cancelled():
            work.exception()  # there is nobody left to be told
        raise
    return work.result()


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


def is_short(work: int) -> bool:
    """Whether ``work`` (element updates) takes so little time that it stays on the event loop."""
    return work < BULK_ELEMENTS


async def unless_short(executor: Executor, function: Callable[[], T], work: int) -> T:
    """Result of ``function()``, in a thread unless ``work`` (element updates) is short."""
    return function() if is_short(work) else await in_thread(executor, function)


def updates(elements: int, steps: int) -> int:
    """The work of ``steps`` updates of ``elements``; of a few elements each takes as long as of some more."""
    return max(elements, 16) * steps


def pieces(count: int) -> int:
    """The work of looking at each of ``count`` tensors, groups or segments in Python, beside the first few."""
    return _PIECE_UPDATES * max(count - _FEW_PIECES, 0)


async def in_thread(executor: Executor, function: Callable[[], T]) -> T:
    """Result of ``function()`` in a thread. A caller that is cancelled stays until the function has ended, so that
    nothing is freed or handed on while the thread works on it."""
    return await to_the_end(asyncio.get_running_loop().run_in_executor(executor, function))
