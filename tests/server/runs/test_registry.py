"""Runs by name: pages, and what is left of a creation that came to nothing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from gradwire.server.config import ServerConfig
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.durability.stored_runs import DamagedRun
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import TENSOR_BYTES, RunSpec
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.runs import run_table
from gradwire.server.runs.registry import Registry
from gradwire.wire.errors import IncompleteValues, RunAlreadyExists, RunNotFound
from gradwire.wire.layout import Layout

FLOAT32 = np.dtype(np.float32)
RUN_BYTES = 2 * 4 * 3 + TENSOR_BYTES
"""Two elements with parameters and two slots."""


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry(ServerConfig(max_memory=10 * RUN_BYTES), CpuDevice(1))
    yield made
    made.close()


def spec(name: str) -> RunSpec:
    return RunSpec(f"runs/{name}", Layout([[("w", (2,))]]), FLOAT32, (AdamHyperparameters(),))


async def create(registry: Registry, name: str, request_id: str = "r", replace: bool = False, values: int = 2) -> Run:
    creation = registry.begin_creation(spec(name), request_id, replace, FLOAT32)
    try:
        assert creation.upload is not None
        creation.upload.add(0, 0, bytes(4 * values))
        return await registry.finish_creation(creation)
    finally:
        creation.abandon()


def names(runs: Sequence[Run | DamagedRun]) -> list[str]:
    return [(run.name if isinstance(run, DamagedRun) else run.spec.name).removeprefix("runs/") for run in runs]


def test_pages_are_capped_and_ordered(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_table, "MAX_PAGE", 3)

    async def test() -> None:
        for name in "dbeac":
            await create(registry, name)
        for size in (0, 3, 4, 2**32 - 1):
            runs, token = registry.page("", size)
            assert (names(runs), token) == (["a", "b", "c"], "runs/c")
        runs, token = registry.page("runs/c", 0)
        assert (names(runs), token) == (["d", "e"], "")
        runs, token = registry.page("", 1)
        assert (names(runs), token) == (["a"], "runs/a")

    asyncio.run(test())


def test_a_page_may_follow_a_run_that_has_been_deleted_since(registry: Registry) -> None:
    async def test() -> None:
        for name in "abc":
            await create(registry, name)
        await registry.delete("runs/b")
        assert names(registry.page("runs/b", 0)[0]) == ["c"]
        assert registry.page("runs/c", 0) == ([], "")

    asyncio.run(test())


def test_a_creation_that_fails_leaves_neither_run_nor_memory(registry: Registry) -> None:
    async def test() -> None:
        with pytest.raises(IncompleteValues):
            await create(registry, "x", values=1)
        with pytest.raises(RunNotFound):
            registry.get("runs/x")
        assert registry.budget.used_bytes == 0

    asyncio.run(test())


def test_replacing_ends_and_frees_the_old_run(registry: Registry) -> None:
    async def test() -> None:
        old = await create(registry, "x", "one")
        with pytest.raises(RunAlreadyExists):
            await create(registry, "x", "two")
        new = await create(registry, "x", "two", replace=True)
        assert registry.get("runs/x") is new
        assert registry.budget.used_bytes == RUN_BYTES
        with pytest.raises(RunNotFound, match="has been deleted"):
            old.require_alive()

    asyncio.run(test())


def test_a_second_attempt_of_the_same_creation_yields_the_first_ones_run(registry: Registry) -> None:
    async def test() -> None:
        first = await create(registry, "x", "one", replace=True)
        assert await create(registry, "x", "one", replace=True) is first
        assert registry.existing("runs/x", "one") is first
        assert registry.existing("runs/x", "two") is None
        assert registry.budget.used_bytes == RUN_BYTES

    asyncio.run(test())


def test_deleting_twice_finds_nothing_the_second_time(registry: Registry) -> None:
    async def test() -> None:
        await create(registry, "x")
        assert await registry.delete("runs/x") == 0
        assert registry.budget.used_bytes == 0
        with pytest.raises(RunNotFound, match="no run 'runs/x'"):
            await registry.delete("runs/x")

    asyncio.run(test())


def test_the_name_of_a_run_that_has_ended_by_itself_is_free(registry: Registry) -> None:
    """Nobody has asked for it in between; not even the request that made it finds it again."""

    async def scenario() -> None:
        run = await create(registry, "x", "first")
        run.delete("was ended")
        assert registry.existing("runs/x", "first") is None
        again = await create(registry, "x", "second")
        assert registry.get("runs/x") is again is not run

    asyncio.run(scenario())


def test_a_failure_that_nobody_waits_for_is_no_noise(registry: Registry) -> None:
    async def fail(may_fail: asyncio.Event) -> None:
        await may_fail.wait()
        raise RunNotFound("there is no such run")

    async def test() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        may_fail = asyncio.Event()
        caller = asyncio.ensure_future(registry._to_the_end(fail(may_fail)))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait({caller})
        may_fail.set()
        await asyncio.wait(set(registry._tasks))
        await asyncio.sleep(0)
        del caller
        gc.collect()
        assert complaints == []

    asyncio.run(test())
