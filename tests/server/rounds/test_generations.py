"""Generations of parameters: nobody who reads one sees another, and there are never more than three."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gradwire.server.devices.base import State
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.engine.run import Run
from gradwire.server.engine.shared import SharedRun
from gradwire.server.engine.spec import RunSpec
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.rounds.generations import MOST, Generations
from gradwire.wire.layout import Layout

BFLOAT16 = np.dtype(np.float16)  # any other than the run's


@pytest.fixture
def run() -> Iterator[Run]:
    layout = Layout([[("w", (4,))]])
    spec = RunSpec("runs/x", layout, np.dtype(np.float32), (AdamHyperparameters(),), shared=SharedRun())
    with ThreadPoolExecutor(1) as executor:
        yield Run(spec, CpuDevice(1), MemoryBudget(2**20), executor)


async def apply(run: Run, generations: Generations) -> None:
    """A round: all parameters become its number."""
    fresh = await generations.room() if generations.read else run.state.params
    fresh[:] = run.step + 1
    run.state = State(fresh, run.state.slots)
    run.step += 1
    generations.publish()


def test_what_is_read_stays_as_it_is(run: Run) -> None:
    async def scenario() -> None:
        generations = Generations(run)
        generations.pin("a")
        await apply(run, generations)
        first = generations.pin("a")
        await apply(run, generations)
        second = generations.pin("a")
        assert (first.step, first.params.tolist()) == (1, [[1.0] * 4])
        assert (second.step, second.params.tolist()) == (2, [[2.0] * 4])

    asyncio.run(scenario())


def test_one_that_nobody_reads_is_written_to_again(run: Run) -> None:
    async def scenario() -> None:
        generations = Generations(run)
        vectors = set()
        for _ in range(5):
            generations.unpin(generations.pin("a"), "a")
            await apply(run, generations)
            vectors.add(id(run.state.params))
        assert len(vectors) == 1

    asyncio.run(scenario())


def test_the_fourth_waits_for_the_slowest_reader(run: Run) -> None:
    async def scenario() -> None:
        generations = Generations(run)
        pinned = []
        for _ in range(MOST):
            pinned.append(generations.pin("a"))
            if len(pinned) < MOST:
                await apply(run, generations)
        fourth = asyncio.ensure_future(apply(run, generations))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not fourth.done()
        assert [each.params[0, 0] for each in pinned] == [0.0, 1.0, 2.0]
        assert generations.holding_up == ["a", "a"]
        generations.unpin(pinned[1], "a")
        await fourth
        assert (run.state.params is pinned[1].params, generations.pin("a").params[0, 0]) == (True, 3.0)
        assert [each.params[0, 0] for each in (pinned[0], pinned[2])] == [0.0, 2.0]

    asyncio.run(scenario())


def test_a_vector_that_two_share_is_not_written_to(run: Run) -> None:
    """A write of the optimizer state raises the epoch, and leaves the parameters where they are."""

    async def scenario() -> None:
        generations = Generations(run)
        before = generations.pin("a")
        run.epoch += 1
        after = generations.pin("a")
        assert (before.epoch, after.epoch, before.params is after.params) == (0, 1, True)
        generations.unpin(before, "a")
        await apply(run, generations)
        assert after.params.tolist() == [[0.0] * 4]

    asyncio.run(scenario())


@pytest.mark.parametrize("wire", [np.dtype(np.float32), BFLOAT16], ids=str)
def test_an_encoding_is_made_once_for_all(run: Run, wire: np.dtype[Any]) -> None:
    async def scenario() -> None:
        generations = Generations(run)
        generation = generations.pin("a")
        used = run.budget.used_bytes
        found = await asyncio.gather(*(generation.encoded(wire, run.lock.executor) for _ in range(3)))
        assert all(values is found[0] or np.shares_memory(values, found[0]) for values in found)
        assert found[0].dtype == wire  # type: ignore[union-attr]
        assert run.budget.used_bytes - used == (8 if wire == BFLOAT16 else 0)
        generations.unpin(generation, "a")
        await apply(run, generations)
        assert run.budget.used_bytes == used

    asyncio.run(scenario())


def test_without_room_each_encodes_by_itself(run: Run) -> None:
    async def scenario() -> None:
        generation = Generations(run).pin("a")
        with run.budget.reserve(run.budget.free_bytes, "all"):
            assert await generation.encoded(BFLOAT16, run.lock.executor) is None

    asyncio.run(scenario())
