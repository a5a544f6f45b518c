"""A stream's reads and writes end for better reasons than its peer's; what runs between them is left alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
import pytest

from gradwire.server.rpc.stream_guard import StreamGuard
from gradwire.wire.errors import Draining, Fenced, Stalled

FENCED, DRAINING = Fenced("another stream"), Draining("the end")

Handler = Callable[[StreamGuard], Coroutine[Any, Any, object]]


def run_handler(
    handler: Handler, act: Callable[[StreamGuard, asyncio.Task[object]], object], stall_timeout_seconds: float = 60
) -> object:
    """Lets ``act`` loose on the handler once that waits for something; returns what the handler returns."""

    async def main() -> object:
        made: asyncio.Future[StreamGuard] = asyncio.get_running_loop().create_future()

        async def guarded() -> object:
            guard = StreamGuard(stall_timeout_seconds)
            made.set_result(guard)
            try:
                return await handler(guard)
            finally:
                guard.close()

        task = asyncio.ensure_future(guarded())
        guard = await made
        await asyncio.sleep(0)
        act(guard, task)
        return await asyncio.wait_for(task, 10)

    return asyncio.run(main())


def forever() -> Awaitable[None]:
    return asyncio.get_running_loop().create_future()


def write_forever(message: object) -> Awaitable[None]:
    return forever()


async def reading(guard: StreamGuard) -> None:
    await guard.read(forever)


async def writing(guard: StreamGuard) -> None:
    await guard.write(write_forever, "message")


@pytest.mark.parametrize("handler", [reading, writing])
def test_interrupt_ends_a_wait(handler: Handler) -> None:
    with pytest.raises(Fenced):
        run_handler(handler, lambda guard, task: guard.interrupt(FENCED))


@pytest.mark.parametrize("handler", [reading, writing])
def test_interrupt_may_come_from_another_thread(handler: Handler) -> None:
    """A write that is long fences in the thread that makes it; asyncio's debug mode refuses what is not thread-safe."""

    def act(guard: StreamGuard, task: asyncio.Task[object]) -> None:
        asyncio.get_running_loop().set_debug(True)
        interrupting = threading.Thread(target=guard.interrupt, args=(FENCED,))
        interrupting.start()
        interrupting.join(10)

    with pytest.raises(Fenced):
        run_handler(handler, act)


@pytest.mark.parametrize("handler", [reading, writing])
def test_a_peer_that_hangs_up_is_a_cancellation(handler: Handler) -> None:
    with pytest.raises(asyncio.CancelledError):
        run_handler(handler, lambda guard, task: task.cancel())


def test_a_drain_ends_reads_and_no_writes() -> None:
    with pytest.raises(Draining):
        run_handler(reading, lambda guard, task: guard.drain(DRAINING))

    async def writes_then_reads(guard: StreamGuard) -> None:
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.01, written.set_result, None)
        await guard.write(lambda message: written, "message")
        with pytest.raises(Draining):
            await guard.read(forever)
        raise Fenced("the write went through")

    with pytest.raises(Fenced, match="went through"):
        run_handler(writes_then_reads, lambda guard, task: guard.drain(DRAINING))


def test_an_interrupt_leaves_work_in_between_alone() -> None:
    async def works_then(guard: StreamGuard) -> str:
        await asyncio.sleep(0.01)  # a commit, say: nothing of the guard's
        with pytest.raises(Fenced):
            await guard.write(write_forever, "the receipt")
        with pytest.raises(Fenced):
            await guard.read(forever)
        return "the work was done"

    assert run_handler(works_then, lambda guard, task: guard.interrupt(FENCED)) == "the work was done"


@pytest.mark.parametrize(("error", "interrupt"), [(Fenced, StreamGuard.interrupt), (Draining, StreamGuard.drain)])
def test_an_interrupt_beats_a_message_that_has_just_come(
    error: type[Exception], interrupt: Callable[[StreamGuard, Any], None]
) -> None:
    """It is there, and the handler has not been woken for it yet: the cancellation must not leak out as one."""
    message: list[asyncio.Future[str]] = []

    async def reads(guard: StreamGuard) -> None:
        message.append(asyncio.get_running_loop().create_future())
        await guard.read(lambda: message[0])

    def act(guard: StreamGuard, task: asyncio.Task[object]) -> None:
        message[0].set_result("a slice")
        interrupt(guard, FENCED if error is Fenced else DRAINING)

    with pytest.raises(error):
        run_handler(reads, act)


def test_the_first_interrupt_counts() -> None:
    async def waits(guard: StreamGuard) -> None:
        await asyncio.sleep(0.01)
        await guard.read(forever)

    def act(guard: StreamGuard, task: asyncio.Task[object]) -> None:
        guard.drain(DRAINING)
        guard.interrupt(FENCED)
        guard.interrupt(Stalled("too late"))

    with pytest.raises(Fenced):
        run_handler(waits, act)


def test_a_write_may_not_take_longer_than_the_stall_timeout() -> None:
    with pytest.raises(Stalled):
        run_handler(writing, lambda guard, task: None, stall_timeout_seconds=0.05)


def test_quick_writes_add_up_to_no_stall() -> None:
    """And one that stalls after them is found nevertheless."""
    count = 20

    async def writes(guard: StreamGuard) -> None:
        for _ in range(count):
            await guard.write(lambda message: asyncio.sleep(0.03), "message")
        await asyncio.sleep(0.6)  # a time without any write is no stall either
        await guard.write(lambda message: asyncio.sleep(0), "message")
        with pytest.raises(Stalled):
            await guard.write(write_forever, "message")
        raise Fenced("all of them went through")

    with pytest.raises(Fenced, match="all of them"):
        run_handler(writes, lambda guard, task: None, stall_timeout_seconds=0.5)


def test_a_write_that_fails_is_a_peer_that_has_gone() -> None:
    async def writes(guard: StreamGuard) -> None:
        async def fail(message: object) -> None:
            raise grpc.aio.InternalError("the connection is broken")

        await guard.write(fail, "message")

    with pytest.raises(asyncio.CancelledError):
        run_handler(writes, lambda guard, task: None)
