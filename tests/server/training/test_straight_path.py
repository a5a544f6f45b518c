"""Which blocks are taken, applied and answered in one go, and that they come out as they do on the long way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.encodings.decoders import DenseDecoder
from gradwire.server.encodings.encoders import DenseEncoder
from gradwire.server.engine import threads
from gradwire.server.engine.block import BlockHeader, GradientSlice, Reply, Returns
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import NonFinitePolicy, RunSpec
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.training.session import Session
from gradwire.wire.errors import (
    GradwireError,
    InvalidHyperparameter,
    InvalidSlice,
    NonFiniteGradient,
    ProtocolViolation,
)
from gradwire.wire.layout import Layout

FLOAT32 = np.dtype(np.float32)
LAYOUT = Layout([[("a", (2,)), ("b", (3,))], [("c", ())]])
GROUPS = (AdamHyperparameters(lr=0.01, amsgrad=True), AdamHyperparameters(lr=0.1))
SPEC = RunSpec("runs/straight", LAYOUT, FLOAT32, GROUPS)
OVERRIDES = {1: {"lr": 0.5}}


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


async def session_of(executor: ThreadPoolExecutor, spec: RunSpec = SPEC, wire: str = "<f4") -> Session:
    run = Run(spec, CpuDevice(1), MemoryBudget(2**30), executor)
    run.state.params[:] = np.linspace(-1, 1, LAYOUT.elements)
    dtype = np.dtype(wire)
    coding: dict[str, Any] = {"decoder": DenseDecoder(dtype), "encoder": DenseEncoder(dtype)}
    return await Session.attach(
        run, "worker", False, lambda error: None, max_result_bytes=2**20, executor=executor, **coding
    )


def block(sequence: int = 1, steps: int = 1, **changes: Any) -> GradientSlice:
    values = np.random.default_rng(sequence).normal(size=(steps, LAYOUT.elements)).astype(np.float32)
    header = {
        name: changes.pop(name) for name in ("returns", "absent_tensors", "overrides", "deferred") if name in changes
    }
    part = GradientSlice(sequence, 0, values.tobytes(), last=True, header=BlockHeader(steps=steps, **header))
    return part._replace(**changes)


def encoded(reply: Reply) -> tuple[bytes, object]:
    """What is sent for it; the values of a reply are the run's own."""
    return b"" if reply.values is None else reply.values.tobytes(), reply.receipt


async def straight(session: Session, part: GradientSlice) -> tuple[bytes, object]:
    reply = await session.receive_whole(part)
    assert reply is not None
    found = encoded(reply)
    session.answered()
    return found


async def the_long_way(session: Session, part: GradientSlice) -> tuple[bytes, object]:
    found = [encoded(reply) async for reply in session.receive(part)]
    return b"".join(data for data, _ in found), found[-1][1]


@pytest.mark.parametrize("policy", NonFinitePolicy)
@pytest.mark.parametrize("returns", [Returns.LAST, Returns.NONE])
@pytest.mark.parametrize("steps", [1, 7])
def test_both_ways_lead_to_the_same(
    executor: ThreadPoolExecutor, steps: int, returns: Returns, policy: NonFinitePolicy
) -> None:
    async def states() -> None:
        spec = replace(SPEC, non_finite_policy=policy)
        one, other = await session_of(executor, spec), await session_of(executor, spec)
        for sequence, overrides in ((1, {}), (2, OVERRIDES), (3, {})):
            part = block(sequence, steps, returns=returns, overrides=overrides)
            assert await straight(one, part) == await the_long_way(other, part)
        assert one.run.state.params.tobytes() == other.run.state.params.tobytes()
        assert {name: slot.tobytes() for name, slot in one.run.state.slots.items()} == {
            name: slot.tobytes() for name, slot in other.run.state.slots.items()
        }
        assert one.run.groups == other.run.groups
        assert one.run.budget.used_bytes == other.run.budget.used_bytes == spec.memory_bytes + one.run.series.size_bytes
        # The last block again: its repeat is answered the long way, from what is remembered.
        assert await one.receive_whole(block(3, steps, returns=returns)) is None
        repeated = await the_long_way(one, block(3, steps, returns=returns))
        assert repeated == await the_long_way(other, block(3, steps, returns=returns))

    asyncio.run(states())


OTHERS: dict[str, Callable[[], GradientSlice]] = {
    "a part of a block": lambda: block(last=False),
    "a trajectory": lambda: block(returns=Returns.TRAJECTORY),
    "absent tensors": lambda: block(absent_tensors=frozenset({1})),
    "deferred": lambda: block(deferred=True),
    "no header": lambda: block(header=None),
    "another offset": lambda: block(offset=1),
    "too few elements": lambda: block(data=bytes(4)),
    "a sequence to come": lambda: block(2),
    "many steps": lambda: block(steps=threads.BULK_ELEMENTS // 16),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_all_others_go_the_long_way(executor: ThreadPoolExecutor, make: Callable[[], GradientSlice]) -> None:
    async def look() -> None:
        session = await session_of(executor)
        before = session.run.state.params.copy()
        assert await session.receive_whole(make()) is None
        assert (session.run.state.params == before).all()
        assert session.run.budget.used_bytes == SPEC.memory_bytes
        assert (await straight(session, block()))[0] != before.tobytes()

    asyncio.run(look())


def test_runs_that_clip_go_the_long_way(executor: ThreadPoolExecutor) -> None:
    async def look() -> None:
        session = await session_of(executor, replace(SPEC, clip_value=0.5))
        assert await session.receive_whole(block()) is None

    asyncio.run(look())


def test_whoever_holds_the_lock_goes_first(executor: ThreadPoolExecutor) -> None:
    async def look() -> None:
        session = await session_of(executor)
        async with session.run.lock.held():
            assert await session.receive_whole(block()) is None
        assert await session.receive_whole(block()) is not None

    asyncio.run(look())


def test_nothing_goes_past_a_block_that_is_arriving(executor: ThreadPoolExecutor) -> None:
    async def look() -> None:
        session = await session_of(executor)
        async for _ in session.receive(block(last=False, data=bytes(8))):
            pass
        assert await session.receive_whole(block()) is None

    asyncio.run(look())


def refused(executor: ThreadPoolExecutor, part: GradientSlice, spec: RunSpec = SPEC) -> GradwireError:
    """What the straight path raises, once it is known that nothing has been applied and what the sender is told."""

    async def look() -> GradwireError:
        session = await session_of(executor, spec)
        before = session.run.state.params.copy()
        with pytest.raises(GradwireError) as caught:
            await session.receive_whole(part)
        session.complete(caught.value)
        assert caught.value.applied is False
        assert (session.run.state.params == before).all()
        assert session.run.budget.used_bytes == spec.memory_bytes
        return caught.value

    return asyncio.run(look())


def test_refusals_leave_the_run_as_it_was(executor: ThreadPoolExecutor) -> None:
    bad = np.array([[0, 0, np.nan, 0, 0, 0]], np.float32).tobytes()
    assert isinstance(refused(executor, block(data=bad)), NonFiniteGradient)
    assert isinstance(refused(executor, block(overrides={0: {"lr": -1.0}})), InvalidHyperparameter)
    assert isinstance(refused(executor, block(data=bytes(3))), InvalidSlice)


def test_a_device_that_fails_ends_the_run_and_nobody_says_what_was_applied(
    executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look() -> None:
        session = await session_of(executor)

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("the device is gone")

        monkeypatch.setattr(session.run.device, "update", fail)
        with pytest.raises(GradwireError) as caught:
            await session.receive_whole(block())
        session.complete(caught.value)
        assert caught.value.applied is not True
        assert session.run.ended

    asyncio.run(look())


def test_whatever_is_wrong_with_what_is_heard_while_a_block_is_answered_it_was_applied(
    executor: ThreadPoolExecutor,
) -> None:
    async def look() -> None:
        session = await session_of(executor)
        assert await session.receive_whole(block()) is not None
        error = ProtocolViolation("expected 'taken' here")
        session.complete(error)
        assert (error.applied, error.metadata["sequence"]) == (True, "1")
        session.answered()
        error = ProtocolViolation("expected 'gradients' here")
        session.complete(error)
        assert error.applied is False

    asyncio.run(look())
