"""Gradients that are kept until they are whole: sums made on their way, and answers written while they are applied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradwire.server.devices.base import DeviceArray
from gradwire.server.engine.block import BlockHeader, Returns
from gradwire.server.engine.block_plan import plan_block
from gradwire.server.engine.gradients import StagedSums
from gradwire.server.engine.run import Run
from gradwire.wire.layout import Range
from tests.server.training.test_early_update import CUTS, ELEMENTS, gradients, run  # noqa: F401


def staged(run: Run, steps: int, cuts: list[Range]) -> tuple[StagedSums, DeviceArray, Any]:  # noqa: F811
    block = plan_block(run, 1, BlockHeader(steps, Returns.LAST), run.groups)
    sums = StagedSums(ELEMENTS, block)
    array = run.device.allocate(steps, ELEMENTS, run.spec.dtype)
    values = gradients(steps)
    for part in cuts:
        sums.stage(run.device, array, part, values[:, part.start : part.stop])
    assert np.array_equal(array, values)
    return sums, array, block


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("steps", [1, 3])
def test_sums_are_those_of_the_whole_however_it_was_cut(run: Run, steps: int, cuts: list[Range]) -> None:  # noqa: F811
    sums, array, _ = staged(run, steps, cuts)
    expected = run.device.square_sums(array, 0, (Range(0, ELEMENTS),))
    assert sums.total(run.device, array).tolist() == expected.tolist()
