"""A server in a thread of the test's own process: its registry can be looked at, its device can be held up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Generic, TypeVar

import pytest

from gradwire.server import failpoints
from gradwire.server.app import Server
from gradwire.server.config import ServerConfig
from gradwire.server.devices.base import Device
from gradwire.server.engine import threads
from gradwire.server.engine.run import Run
from gradwire.server.runs.registry import Registry
from gradwire.server.training.arrival_speed import ArrivalSpeed
from tests.serving import START_TIMEOUT_SECONDS

T = TypeVar("T")

BULK_ELEMENTS = 65_536
"""Element updates from which work leaves the event loop of a hosted server."""

WAIT_SECONDS = 30.0
"""How long anything that should happen at once may take on a busy machine."""


class HostedServer:
    """Serves at ``target`` until `close`. A context manager.

    Args:
        device: in place of the CPU device.
        near: whether blocks of one step that come over loopback are computed when they are whole, as outside of tests.
            Else as if they came from another host, while they arrive: so more is under way when something fails.
        settings: fields of ServerConfig.
    """

    def __init__(self, device: Device | None = None, *, near: bool = False, **settings: Any) -> None:
        config = ServerConfig(**{"listen": ("127.0.0.1:0",), "device": "cpu", "drain_timeout_seconds": 5.0, **settings})
        self._cancelled = threading.Event()
        self._patch = pytest.MonkeyPatch()
        self.loop = asyncio.new_event_loop()
        self.loop.set_task_factory(_noting_cancellations(self._cancelled))
        self._thread = threading.Thread(target=self._serve, name="hosted-server", daemon=True)
        self._thread.start()
        try:
            if not near:
                self._patch.setattr(ArrivalSpeed, "near", property(lambda speed: False))
            # Work that a test holds up must not be on the event loop, and runs of a test are small.
            self._patch.setattr(threads, "BULK_ELEMENTS", BULK_ELEMENTS)
            self.server: Server = self._run(self._start(config, device), START_TIMEOUT_SECONDS)
        except BaseException:
            self._end()
            raise
        self.registry: Registry = self.server.registry
        self.target: str = self.server.addresses[0]

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.run_until_complete(_cancel_the_others())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    async def _start(self, config: ServerConfig, device: Device | None) -> Server:
        server = Server(config, device)
        try:
            await server.start()
        except BaseException:
            await server.abandon()  # else gRPC would end it later, without its loop, and keep later tests from ending
            raise
        return server

    def _run(self, coroutine: Any, seconds: float = WAIT_SECONDS) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return future.result(seconds)

    def call(self, function: Callable[[], T]) -> T:
        """``function()`` on the server's event loop, where nothing else runs meanwhile."""

        async def run() -> T:
            return function()

        result: T = self._run(run())
        return result

    def run_of(self, name: str) -> Run:
        """The server's own object for ``runs/name``."""
        return self.call(lambda: self.registry.get(f"runs/{name}"))

    def run_of_inside(self, name: str) -> Run:
        """As `run_of`, of a run by its name inside, which has its tenant in it."""
        return self.call(lambda: self.registry.get(name))

    @property
    def used_bytes(self) -> int:
        """What the memory budget counts now, but for the series of runs, which steps make longer."""
        registry = self.registry
        return registry.budget.used_bytes - sum(run.series.size_bytes for run in list(registry._runs.values()))

    def handlers(self) -> int:
        """How many calls of OptimizerService are inside their handlers."""
        return self.call(lambda: len(self.server.servicer._guards))

    def handler_tasks(self) -> int:
        """How many calls gRPC still runs a handler for, one that sends its last status included."""
        return self.call(lambda: sum(is_handler(task.get_coro()) for task in asyncio.all_tasks(self.loop)))

    def delete(self, name: str) -> None:
        """Deletes a run, by its resource name."""
        self._run(self.registry.delete(name))

    def locked(self, run: Run) -> None:
        """Takes the run's lock, for a test that will `call` its ``release``."""
        self._run(run.lock.acquire())

    def wait_for_waiters(self, run: Run, count: int) -> None:
        """Returns when exactly ``count`` callers wait for the run's lock, which somebody else holds."""

        def waiting() -> int:
            assert run.lock._lock.locked()
            return len(run.lock._lock._waiters or ())

        eventually(lambda: self.call(waiting) == count, f"{count} callers wait for the lock")

    def wait_cancelled(self) -> None:
        """Returns when a handler has been cancelled since the last call, and has done what it does about that."""
        assert self._cancelled.wait(WAIT_SECONDS), "no handler has been cancelled"
        self._cancelled.clear()

        async def settle() -> None:
            for _ in range(20):
                await asyncio.sleep(0)

        self._run(settle())

    def refuse_work(self) -> None:
        """Drains as far as callers see it, and goes on listening."""
        self._run(self.server.servicer.drain(0.1))

    def drain(self) -> None:
        """Drains, and waits until the server has stopped."""
        self._run(self.server.drain())

    def close(self) -> None:
        """Drains and ends the thread; what was patched is as it was before, even where draining fails."""
        try:
            if self._thread.is_alive():
                self.drain()
        finally:
            self._end()

    def _end(self) -> None:
        """Ends the loop and its thread, takes the patches back and disarms failpoints, of a test that failed too."""
        self._patch.undo()
        failpoints.disarm()
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(WAIT_SECONDS)

    def __enter__(self) -> HostedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _cancel_the_others() -> None:
    """As `asyncio.run` does: a task that is forgotten with its loop would be logged as an error of some later test."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=WAIT_SECONDS)


def _noting_cancellations(cancelled: threading.Event) -> Any:
    """A task factory whose handlers' tasks set ``cancelled`` when they are cancelled."""

    class Handler(asyncio.Task[Any]):
        def cancel(self, msg: object = None) -> bool:
            cancelled.set()
            return super().cancel(msg)

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        return (Handler if is_handler(coroutine) else asyncio.Task)(coroutine, loop=loop, **options)

    return make


def is_handler(coroutine: object) -> bool:
    """Whether gRPC runs the handler of a call in this coroutine; its name is gRPC's own."""
    return getattr(coroutine, "__name__", "") == "_handle_exceptions"


class InBackground(Generic[T]):
    """Calls a function in a thread; a context manager that waits for its end unless the test has failed."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        self._thread = threading.Thread(target=self._work, args=(function,), daemon=True)
        self._thread.start()

    def _work(self, function: Callable[[], T]) -> None:
        try:
            self._future.set_result(function())
        except BaseException as error:
            self._future.set_exception(error)

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> T:
        """What the function has returned, or raises what it has raised."""
        return self._future.result(WAIT_SECONDS)

    def __enter__(self) -> InBackground[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._thread.join(WAIT_SECONDS)
            assert not self._thread.is_alive()


def eventually(condition: Callable[[], object], what: str, timeout_seconds: float = WAIT_SECONDS) -> None:
    """Returns as soon as ``condition()`` is true; fails after ``timeout_seconds``. For what no event announces."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {timeout_seconds:g} s: {what}")
        time.sleep(0.005)
