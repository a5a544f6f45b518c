"""Gradients that are kept until they are whole: sums made on their way, and answers written while they are applied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradwire.server.devices.base import DeviceArray
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.engine.block import BlockHeader, Returns
from gradwire.server.engine.block_plan import plan_block
from gradwire.server.engine.gradients import StagedGradients, StagedSums
from gradwire.server.engine.run import Run
from gradwire.server.optimizers.base import Floats
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


class Answer:
    """Keeps what it is given."""

    def __init__(self, parts: list[Range], rest: list[Range], dtype: str) -> None:
        self.parts = parts
        self.rest = rest
        self.values = {part: np.zeros((1, part.stop - part.start), dtype) for part in parts}
        self.told: list[Range] = []

    def place(self, part: Range) -> Floats:
        return self.values[part]

    def done(self, part: Range) -> None:
        assert self.values[part].any()
        self.told.append(part)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("placed", [0, 1, 3])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_answer_holds_what_the_block_leaves(run: Run, steps: int, placed: int, dtype: str) -> None:  # noqa: F811
    cuts = CUTS["edges on both sides"]
    sums, array, block = staged(run, steps, cuts)
    answer = Answer(cuts[:placed], cuts[placed:], dtype)
    device = CpuDevice(1)
    before = run.state.params.copy()
    expected = device.copy(run.state.params), {name: slot.copy() for name, slot in run.state.slots.items()}
    plain = StagedGradients(run.spec, device, block, array)
    plain.apply(type(run.state)(*expected), None, plain.sums())
    answering = StagedGradients(run.spec, device, block, array, 0, answer, sums)
    state = answering.apply(run.state, None, answering.sums())
    assert not np.array_equal(state.params, before)
    assert np.array_equal(state.params, expected[0])
    for name, slot in state.slots.items():
        assert np.array_equal(slot, expected[1][name])
    assert answer.told == cuts[:placed]
    for part, values in answer.values.items():
        assert np.array_equal(values, state.params[:, part.start : part.stop].astype(dtype))
