"""How often the rule is asked: not once more for each of many contributions that cannot close their round."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.engine.block import BlockHeader, Contribution, Kind
from gradwire.server.engine.run import Run
from gradwire.server.engine.shared import SharedRun
from gradwire.server.engine.spec import RunSpec
from gradwire.server.engine.workers import Holder
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.rounds import rounds as rounds_module
from gradwire.server.rounds.leases import AttachShared
from gradwire.server.rounds.rounds import Rounds, rounds_of
from gradwire.server.rounds.rule import decide as rule
from gradwire.server.rounds.staged import StagedContribution
from gradwire.wire.layout import Layout

WORKERS = [f"rank-{number:02}" for number in range(32)]


class Scene:
    """A run with many workers, and how often it was looked at what becomes of its round."""

    def __init__(self, rounds: Rounds, holds: dict[str, Holder], asked: list[int]) -> None:
        self.rounds = rounds
        self.holds = holds
        self.asked = asked
        """How many contributions there were each time."""

    async def offer(self, worker_id: str) -> StagedContribution:
        says = Contribution(weight=1.0, base_epoch=self.rounds.run.epoch, base_step=self.rounds.run.step)
        staging = self.rounds.stagings.take()
        contribution = StagedContribution(self.holds[worker_id], 1, BlockHeader(contribution=says), staging, 0)
        await self.rounds.offer(contribution)
        return contribution


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []

    def decide(now: float, round: Any, options: SharedRun) -> Any:
        found.append(len(round.weights))
        return rule(now, round, options)

    monkeypatch.setattr(rounds_module, "decide", decide)
    return found


async def scene_of(options: SharedRun, executor: ThreadPoolExecutor, asked: list[int]) -> Scene:
    spec = RunSpec("runs/x", Layout([[("w", (4,))]]), np.dtype(np.float32), (AdamHyperparameters(),), shared=options)
    rounds = rounds_of(Run(spec, CpuDevice(1), MemoryBudget(2**20), executor))
    holds = {name: (await rounds.attach(AttachShared(name), lambda error: None))[0] for name in WORKERS}
    return Scene(rounds, holds, asked)


@pytest.mark.parametrize("quorum", [None, 20])
def test_the_first_and_the_last_contribution_are_considered(quorum: int | None, asked: list[int]) -> None:
    async def scenario(executor: ThreadPoolExecutor) -> None:
        scene = await scene_of(SharedRun(quorum=quorum, max_staleness=1), executor, asked)
        waiting = [await scene.offer(name) for name in WORKERS[:quorum]]
        receipts = await asyncio.gather(*(each.answer for each in waiting))
        assert {receipt.contribution.kind for receipt in receipts if receipt.contribution} == {Kind.ACCEPTED}
        assert scene.asked == [1, len(waiting)]

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(executor))


def test_one_that_leaves_closes_a_round_of_all_others(asked: list[int]) -> None:
    async def scenario(executor: ThreadPoolExecutor) -> None:
        scene = await scene_of(SharedRun(), executor, asked)
        *others, last = WORKERS
        waiting = [await scene.offer(name) for name in others]
        scene.rounds.detach(scene.holds[last], left=True)
        receipts = await asyncio.gather(*(each.answer for each in waiting))
        assert {receipt.step for receipt in receipts} == {1}

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(executor))


def test_a_round_that_has_its_quorum_is_considered_with_each_one(asked: list[int]) -> None:
    """It waits for those who would fall behind, and each of them may be the last."""

    async def scenario(executor: ThreadPoolExecutor) -> None:
        scene = await scene_of(replace(SharedRun(), quorum=30), executor, asked)
        waiting = [await scene.offer(name) for name in WORKERS]
        await asyncio.gather(*(each.answer for each in waiting))
        assert scene.asked == [1, 30, 31, 32]

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(executor))
