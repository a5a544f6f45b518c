"""Deferred blocks that are computed while their gradients are still being made."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from gradwire.server.devices.base import DeviceArray
from gradwire.server.engine.block import BlockHeader, Returns
from gradwire.server.engine.block_plan import plan_block
from gradwire.server.engine.gradients import StagedGradients
from gradwire.server.engine.run import Run
from gradwire.server.engine.staged_block import StagedBlock, override_groups
from gradwire.server.training.early_update import EarlyUpdate, SpareState
from gradwire.server.training.gradient_array import GradientArray
from gradwire.wire.errors import GradwireError
from gradwire.wire.layout import Range


class SpeculativeUpdate(EarlyUpdate):
    """A deferred block, computed as if its last message named no absent tensor and the overrides of its first one.

    Where that message says so, the commit has nothing left to do; else the gradients, which are all kept, are applied
    as they always are. Elements that come again are computed again, from the state that the run still has.
    """

    answers = False

    @classmethod
    def of(
        cls, spare: SpareState, run: Run, sequence: int, header: BlockHeader, kept: GradientArray
    ) -> SpeculativeUpdate | None:
        """None where nothing can be guessed, or the server has no room."""
        if header.steps != 1 or not run.spec.early:
            return None
        try:
            groups = override_groups(run.groups, header.overrides)
        except GradwireError:  # what the first message says need not be valid
            return None
        target = spare.get()
        if target is None:
            return None
        block = plan_block(run, sequence, BlockHeader(overrides=header.overrides), groups)
        return cls(spare, target, run, block, kept) if block.covers(run.spec.layout) else None

    def holds(self, block: StagedBlock) -> bool:
        """Whether the block is what has been computed. Where it is not, what has been kept is all there is."""
        guess = self._block
        return (
            block.version == guess.version
            and block.groups == guess.groups
            and block.ranges == guess.ranges
            and block.header.returns is not Returns.TRAJECTORY
        )

    def take(self, values: npt.NDArray[Any], place: Range) -> None:
        self._run.device.write(self._kept, place.start, values)
        super().take(values, place)

    def first_non_finite(self, row: int) -> tuple[int, float] | None:
        """As `Gradients.first_non_finite`: of what has come last."""
        run = self._run
        return StagedGradients(run.spec, run.device, self._block, self._kept).first_non_finite(row)

    def _keep(self, gradients: DeviceArray, edge: Range, place: Range) -> None:
        """All of it is kept already."""
