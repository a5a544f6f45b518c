"""Ends a stream's wait for its peer when something more important happens."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc

from gradwire.server.access.pacing import Pace
from gradwire.wire.errors import GradwireError, Stalled

T = TypeVar("T")


class StreamGuard:
    """Wraps the reads and writes of one stream, whose handler is the current task.

    `interrupt` makes the read or write under way, or the next one, raise an error of our table; what runs between them
    (a commit) is left alone. Cancelling the handler's task from outside (the peer hung up) goes through unchanged.
    """

    def __init__(self, stall_timeout_seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._stall_timeout_seconds = stall_timeout_seconds
        self._error: GradwireError | None = None
        self._reading = False
        self._stalled: Callable[[float], GradwireError] | None = None
        """Makes what ends a wait for the peer that lasts too long; None: nobody waits so."""
        self._give_up_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._drain: GradwireError | None = None

    def interrupt(self, error: GradwireError) -> None:
        """Ends the stream with ``error`` at its next or present read or write. May be called from any thread."""
        if threading.get_ident() != self._thread:  # a bulk write fences in the thread that makes it
            self._loop.call_soon_threadsafe(self.interrupt, error)
        elif self._error is None:
            self._error = error
            if self._reading or self._stalled is not None:
                self._task.cancel()

    def drain(self, error: GradwireError) -> None:
        """Ends the stream at its next or present read: what has been received whole is still answered."""
        if self._drain is None:
            self._drain = error
            if self._reading and self._error is None:
                self._task.cancel()

    @property
    def ending(self) -> bool:
        """Whether it has been told to end."""
        return self._error is not None or self._drain is not None

    async def read(self, read: Callable[[], Awaitable[T]]) -> T:
        if self._error is not None or self._drain is not None:
            raise self._error or self._drain  # type: ignore[misc]
        self._reading = True
        try:
            return await read()
        except asyncio.CancelledError:
            error = self._error or self._drain
            if error is None:
                raise
            raise error from None
        finally:
            self._reading = False

    async def request(self, read: Callable[[], Awaitable[T]]) -> T:
        """As `read`, for what the peer has no reason to take its time over. Raises Stalled."""
        self._wait_for_peer(_silent)
        try:
            return await self.read(read)
        finally:
            self._stalled = None

    async def keep(self, pace: Pace, longest_seconds: float = math.inf) -> float:
        """Lets the peer wait while its tenant owes something; returns how long. Whatever would end a read ends this."""
        began = self._loop.time()
        end = began + longest_seconds
        while (owed := pace.wait_seconds()) > 0 and (rest := end - self._loop.time()) > 0:
            await self.pause(min(owed, rest))
        return self._loop.time() - began

    async def pause(self, seconds: float) -> None:
        """Lets the peer wait."""
        await self.read(lambda: asyncio.sleep(seconds))

    async def write(self, write: Callable[[Any], Awaitable[None]], message: object) -> None:
        await self._within_stall_timeout(write, message)

    async def hear(self, read: Callable[[], Awaitable[T]]) -> T:
        """Reads what the peer has to say before it gets the rest of its answer."""
        return await self._within_stall_timeout(read)

    async def _within_stall_timeout(self, act: Callable[..., Awaitable[T]], *arguments: object) -> T:
        if self._error is not None:
            raise self._error
        self._wait_for_peer(_deaf)
        try:
            return await act(*arguments)
        except asyncio.CancelledError:
            if self._error is None:
                raise
            raise self._error from None
        except grpc.aio.InternalError as error:
            # The peer has gone. Mostly gRPC cancels the handler then, but a write under way may fail before that.
            raise asyncio.CancelledError from error
        finally:
            self._stalled = None

    def _wait_for_peer(self, stalled: Callable[[float], GradwireError]) -> None:
        """One timer a stream, not one a wait: it looks whether the wait under way is older than it may be."""
        self._stalled = stalled
        self._give_up_at = self._loop.time() + self._stall_timeout_seconds
        if self._timer is None:
            self._timer = self._loop.call_at(self._give_up_at, self._check_stall)

    def close(self) -> None:
        """Ends the guard with its stream."""
        if self._timer is not None:
            self._timer.cancel()

    def _check_stall(self) -> None:
        self._timer = None
        if self._stalled is None:
            return
        if self._loop.time() < self._give_up_at:
            self._timer = self._loop.call_at(self._give_up_at, self._check_stall)
            return
        self.interrupt(self._stalled(self._stall_timeout_seconds))


def _deaf(seconds: float) -> GradwireError:
    return Stalled(
        f"a reply was not taken off the stream for {seconds:g} s; read while you write",
        applied=None,
        stall_timeout_seconds=seconds,
    )


def _silent(seconds: float) -> GradwireError:
    return Stalled(f"nothing was sent for {seconds:g} s; expected a request", stall_timeout_seconds=seconds)
