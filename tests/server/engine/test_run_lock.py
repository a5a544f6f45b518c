"""The lock of a run: one at a time, and what has begun runs to its end even when its caller is cancelled."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gradwire.server.engine.run_lock import RunLock
from gradwire.server.engine.threads import BULK_ELEMENTS


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


class Gate:
    """A function for a thread: it says when it has begun, and returns when it may."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._begun = asyncio.Event()
        self._open = threading.Event()

    def __call__(self) -> str:
        self._loop.call_soon_threadsafe(self._begun.set)
        assert self._open.wait(20)
        self._log.append("kernel has returned")
        return "result"

    async def wait_begun(self) -> None:
        await self._begun.wait()

    def open(self) -> None:
        self._open.set()


@pytest.mark.parametrize("work", [0, BULK_ELEMENTS - 1, BULK_ELEMENTS])
def test_result_and_exception_reach_the_caller(executor: ThreadPoolExecutor, work: int) -> None:
    async def test() -> None:
        lock = RunLock(executor)
        assert await lock.run(lambda: 7, work=work) == 7
        with pytest.raises(ZeroDivisionError):
            await lock.run(lambda: 1 // 0, work=work)
        assert await lock.run(lambda: 8, work=work) == 8, "a failure must not keep the lock"

    run(test)


def test_only_bulk_work_leaves_the_event_loop(executor: ThreadPoolExecutor) -> None:
    async def test() -> None:
        lock = RunLock(executor)
        here = threading.get_ident()
        assert await lock.run(threading.get_ident, work=BULK_ELEMENTS - 1) == here
        assert await lock.run(threading.get_ident, work=BULK_ELEMENTS) != here

    run(test)


def test_one_at_a_time_small_and_bulk_alike(executor: ThreadPoolExecutor) -> None:
    async def test() -> None:
        lock = RunLock(executor)
        inside = 0
        order = []

        def work(number: int) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1
            time.sleep(0.002)
            order.append(number)
            inside -= 1

        await asyncio.gather(
            *(lock.run(lambda n=n: work(n), work=BULK_ELEMENTS * (n % 2)) for n in range(20))  # type: ignore[misc]
        )
        assert sorted(order) == list(range(20))

    run(test)


def test_the_event_loop_goes_on_while_a_kernel_runs(executor: ThreadPoolExecutor) -> None:
    async def test() -> None:
        log: list[str] = []
        gate = Gate(log)
        caller = asyncio.ensure_future(RunLock(executor).run(gate, work=BULK_ELEMENTS))
        await gate.wait_begun()
        log.append("something else")
        gate.open()
        assert await caller == "result"
        assert log == ["something else", "kernel has returned"]

    run(test)


@pytest.mark.parametrize("cancellations", [1, 3])
def test_a_cancelled_caller_keeps_the_lock_until_its_kernel_has_returned(
    executor: ThreadPoolExecutor, cancellations: int
) -> None:
    """Otherwise the next holder would read what a kernel is still writing. However often the caller is cancelled."""

    async def test() -> None:
        lock = RunLock(executor)
        log: list[str] = []
        gate = Gate(log)
        caller = asyncio.ensure_future(lock.run(gate, work=BULK_ELEMENTS))
        await gate.wait_begun()
        following = asyncio.ensure_future(lock.run(lambda: log.append("next holder")))
        for _ in range(cancellations):
            caller.cancel()
            await asyncio.sleep(0.01)
        assert (caller.done(), following.done(), log) == (False, False, [])
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await following
        assert log == ["kernel has returned", "next holder"]

    run(test)


def test_a_caller_cancelled_before_its_turn_gives_it_up(executor: ThreadPoolExecutor) -> None:
    async def test() -> None:
        lock = RunLock(executor)
        log: list[str] = []
        gate = Gate(log)
        caller = asyncio.ensure_future(lock.run(gate, work=BULK_ELEMENTS))
        await gate.wait_begun()
        waiting = asyncio.ensure_future(lock.run(lambda: log.append("never"), work=BULK_ELEMENTS))
        following = asyncio.ensure_future(lock.run(lambda: log.append("next holder")))
        await asyncio.sleep(0.01)
        waiting.cancel()
        gate.open()
        await asyncio.gather(caller, following)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert log == ["kernel has returned", "next holder"]

    run(test)


def test_a_failure_that_nobody_waits_for_is_no_noise(executor: ThreadPoolExecutor) -> None:
    async def test() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        lock = RunLock(executor)
        begun = asyncio.Event()
        may_fail = asyncio.Event()

        async def work() -> None:
            begun.set()
            await may_fail.wait()
            raise OSError("the disk is full")

        caller = asyncio.ensure_future(lock.run_through(work))
        await begun.wait()
        caller.cancel()
        await asyncio.sleep(0)
        may_fail.set()
        await asyncio.wait({caller})
        assert caller.cancelled()
        del caller
        gc.collect()
        assert complaints == []

    run(test)
