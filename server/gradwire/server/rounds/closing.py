"""A round on its way into the run: its contributions become one gradient, which is applied as one step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import DeviceArray
from gradwire.server.durability import changes
from gradwire.server.engine.applied_round import AppliedRound
from gradwire.server.engine.block import BlockHeader, Receipt
from gradwire.server.engine.block_plan import plan_block, planning_work
from gradwire.server.engine.gradients import StagedGradients
from gradwire.server.engine.run import Run
from gradwire.server.engine.shared import Combine
from gradwire.server.engine.staged_block import StagedBlock, override_groups
from gradwire.server.engine.threads import updates
from gradwire.server.engine.workers import Holder, WorkerRecord
from gradwire.server.failpoints import failpoint
from gradwire.server.rounds.generations import Generations
from gradwire.server.rounds.lying import LyingGradient
from gradwire.server.rounds.pieces import absent_from_all, pieces_of
from gradwire.server.rounds.staged import StagedContribution, Stagings
from gradwire.server.series.scalars import combined


class _ReadMeanwhile(Exception):
    """Raised where somebody has begun to read the parameters that a round was about to be written to."""


async def close_round(
    run: Run,
    generations: Generations,
    stagings: Stagings,
    epoch: int,
    applied: AppliedRound,
    contributions: Sequence[StagedContribution],
) -> Receipt:
    """Applies a round; all of it or nothing. What it returns is of the round, not of any contribution.

    Args:
        epoch: of the run when the round opened.
        contributions: in the order of worker ids.

    Raises as `Run.commit` does; NonFiniteGradient where the combined gradient is not finite.
    """
    header = header_of(run, contributions)
    while True:
        fresh = await generations.room() if generations.read else None
        try:
            return await _commit(run, generations, stagings, epoch, header, applied, contributions, fresh)
        except _ReadMeanwhile:
            continue
        finally:
            if fresh is not None and run.state.params is not fresh:
                generations.give_back(fresh)


async def _commit(
    run: Run,
    generations: Generations,
    stagings: Stagings,
    epoch: int,
    header: BlockHeader,
    applied: AppliedRound,
    contributions: Sequence[StagedContribution],
    fresh: DeviceArray | None,
) -> Receipt:
    def plan() -> StagedBlock:
        block = plan_block(run, applied.number, header, override_groups(run.groups, header.overrides))
        block.round = applied
        block.received_bytes = sum(each.received_bytes for each in contributions)
        return block

    def gradients() -> StagedGradients:  # under the lock, which is held until the round has been applied
        if fresh is None and generations.read:
            raise _ReadMeanwhile
        combined, chunk_sums = combine(run, stagings, contributions)
        if len(block.ranges) != 1:  # then chunks may be others than those of the pieces
            chunk_sums = None
        return StagedGradients(run.spec, run.device, block, combined, fresh=fresh, chunk_sums=chunk_sums)

    failpoint("round.before-commit")
    block = await run.lock.run(plan, work=planning_work(run, header))
    try:
        work = updates(run.spec.layout.elements, 1 + len(contributions)) + block.piece_work
        receipt = await changes.commit(run, Holder("", epoch, WorkerRecord(), run.step), block, gradients, work)
    finally:
        block.drop()
    failpoint("round.before-answers")
    return receipt


def header_of(run: Run, contributions: Sequence[StagedContribution]) -> BlockHeader:
    """Of the round: the overrides of its leader, what nobody has a gradient of, and the mean of what they log."""
    overrides = next((each.header.overrides for each in contributions if each.header.overrides), {})
    absent = absent_from_all(
        run.spec.layout, [(1.0, each.header.absent_tensors) for each in contributions if each.staging]
    )
    scalars = combined([(each.says.weight, each.header.scalars) for each in contributions if each.header.scalars])
    return BlockHeader(absent_tensors=absent, overrides=overrides, scalars=scalars)


def combine(
    run: Run, stagings: Stagings, contributions: Sequence[StagedContribution]
) -> tuple[DeviceArray, npt.NDArray[np.float64] | None]:
    """The combined gradient, ``[1, elements]``, that of a single contribution being its own; and its sums of squares,
    if they are known, as `Device.combine` returns them. Under the run's lock."""
    assert run.spec.shared is not None
    mean = run.spec.shared.combine is Combine.MEAN
    parts = [(each.says.weight, each.header.absent_tensors, each.staging) for each in contributions if each.staging]
    if len(parts) == 1 and (mean or parts[0][0] == 1.0):
        staging = parts[0][2]
        if isinstance(staging, LyingGradient):  # it is read several times, and must be the same each time
            return run.device.copy(staging.array, stagings.combined), None
        return staging.array, None
    out = stagings.combined
    pieces = pieces_of(run.spec.layout, [(weight, absent) for weight, absent, _ in parts], mean)
    return out, run.device.combine(out, [staging.array for _, _, staging in parts], pieces)
