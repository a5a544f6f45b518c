"""What the old leader was sending when another worker took the lead over changes nothing any more."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.engine.block import BlockHeader, Contribution
from gradwire.server.engine.run import Run
from gradwire.server.engine.shared import SharedRun
from gradwire.server.engine.spec import RunSpec
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.rounds.leases import AttachShared
from gradwire.server.rounds.rounds import rounds_of
from gradwire.server.rounds.staged import StagedContribution
from gradwire.wire.errors import Fenced, GradwireError
from gradwire.wire.layout import Layout


def test_a_contribution_of_the_old_leader_that_was_arriving_joins_no_round() -> None:
    """Its header was checked while it led; the last slice is written away when it does not any more."""

    async def scenario(executor: ThreadPoolExecutor) -> None:
        options = SharedRun(quorum=1, max_staleness=1)
        spec = RunSpec(
            "runs/x", Layout([[("w", (4,))]]), np.dtype(np.float32), (AdamHyperparameters(),), shared=options
        )
        run = Run(spec, CpuDevice(1), MemoryBudget(2**20), executor)
        rounds, ended = rounds_of(run), list[GradwireError]()
        old, _ = await rounds.attach(AttachShared("old", leads=True), ended.append)
        header = BlockHeader(
            contribution=Contribution(weight=1.0, base_epoch=0, base_step=0), overrides={0: {"lr": 9.0}}
        )
        late = StagedContribution(old, 1, header, rounds.stagings.take(), 0)
        await rounds.attach(AttachShared("new", leads=True, takeover=True), ended.append)
        assert [type(error) for error in ended] == [Fenced]
        with pytest.raises(Fenced) as caught:
            await rounds.offer(late)
        assert (caught.value.applied, run.step, run.groups[0].learning_rate(1)) == (False, 0, 1e-3)
        again, _ = await rounds.attach(AttachShared("old"), ended.append)
        rounds.detach(old, left=True)  # its old stream ends after that
        assert [rounds.leases.require(again).worker_id, rounds.leases.leader, rounds.attached] == ["old", "new", 2]

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(scenario(executor))
