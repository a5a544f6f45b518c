"""What an attachment says of a worker's last contribution is final: nothing of its older stream comes in afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.engine.block import BlockHeader, Contribution
from gradwire.server.engine.run import Run
from gradwire.server.engine.shared import SharedRun
from gradwire.server.engine.spec import RunSpec
from gradwire.server.engine.workers import Holder
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.rounds.leases import AttachShared
from gradwire.server.rounds.rounds import Rounds, rounds_of
from gradwire.server.rounds.staged import StagedContribution
from gradwire.wire.errors import Fenced, GradwireError
from gradwire.wire.layout import Layout


@pytest.fixture
def run() -> Iterator[Run]:
    shared = SharedRun(quorum=2)
    spec = RunSpec("runs/x", Layout([[("w", (4,))]]), np.dtype(np.float32), (AdamHyperparameters(),), shared=shared)
    with ThreadPoolExecutor(1) as executor:
        yield Run(spec, CpuDevice(1), MemoryBudget(2**20), executor)


async def attach(rounds: Rounds, ended: list[GradwireError]) -> Holder:
    holder, waiting = await rounds.attach(AttachShared("a"), ended.append)
    assert waiting is None
    return holder


def test_what_an_older_stream_has_uploaded_comes_too_late(run: Run) -> None:
    """Its last slice was read before the worker attached anew, and was still worked on."""

    async def scenario() -> None:
        rounds, ended = rounds_of(run), list[GradwireError]()
        older = await attach(rounds, ended)
        header = BlockHeader(contribution=Contribution(weight=1.0, base_step=0, base_epoch=0))
        late = StagedContribution(older, 1, header, rounds.stagings.take(), 16)
        newer = await attach(rounds, ended)
        assert [type(error) for error in ended] == [Fenced]
        assert newer.record.last_sequence == 0
        with pytest.raises(Fenced) as caught:
            await rounds.offer(late)
        assert caught.value.applied is False
        assert rounds.waiting("a") is None
        rounds.release(late)

    asyncio.run(scenario())
