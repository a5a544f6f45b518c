"""Blocks that are computed while they arrive: whatever the slices, the state and the sums are those of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from gradwire.server.devices import chunks
from gradwire.server.devices.chunks import NORM_CHUNK
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.engine.block import BlockHeader, Returns
from gradwire.server.engine.block_plan import plan_block
from gradwire.server.engine.gradients import StagedGradients
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import RunSpec
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.training.early_update import EarlyUpdate, SpareState
from gradwire.server.training.gradient_array import GradientArray
from gradwire.wire.layout import Layout, Range

ELEMENTS = 2 * NORM_CHUNK + 1000
GROUPS = (AdamHyperparameters(lr=0.01, amsgrad=True), AdamHyperparameters(lr=0.1))


@pytest.fixture
def run() -> Iterator[Run]:
    layout = Layout([[("a", (NORM_CHUNK,)), ("b", (5,))], [("c", (ELEMENTS - NORM_CHUNK - 5,))]])
    spec = RunSpec("runs/early", layout, np.dtype(np.float32), GROUPS)
    device = CpuDevice(1)
    with ThreadPoolExecutor(1) as executor:
        run = Run(spec, device, MemoryBudget(2**30), executor)
        run.state.params[:] = np.random.default_rng(0).normal(size=ELEMENTS)
        yield run


def cuts(*inner: int) -> list[Range]:
    edges = [0, *inner, ELEMENTS]
    return [Range(a, b) for a, b in pairwise(edges)]


CUTS = {
    "whole chunks": cuts(NORM_CHUNK, 2 * NORM_CHUNK),
    "two chunks": cuts(2 * NORM_CHUNK),
    "edges on both sides": cuts(10, NORM_CHUNK + 7, 2 * NORM_CHUNK + 1),
    "within one chunk": cuts(10, 20, 30),
    "backwards": cuts(10, NORM_CHUNK, NORM_CHUNK + 5, 2 * NORM_CHUNK)[::-1],
    "nothing": [Range(5, 5), *cuts()],
}


def gradients(steps: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(steps, ELEMENTS)).astype(np.float32)


@pytest.mark.parametrize("returns", Returns)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("parts", CUTS.values(), ids=CUTS)
def test_slices_give_what_the_whole_gives(run: Run, parts: Sequence[Range], steps: int, returns: Returns) -> None:
    values = gradients(steps)
    block = plan_block(run, 1, BlockHeader(steps=steps, returns=returns), GROUPS)
    spare = SpareState(run)
    early = EarlyUpdate.into(spare, run, block, GradientArray(run))
    assert early is not None
    answers = {}
    for part in parts:
        early.take(values[:, slice(*part)], part)
        answers[part] = np.array(early.answer(part))
    before = run.state.params.copy()
    found_sums = early.sums()
    old = run.state
    state = early.apply(run.state, None, found_sums)
    assert (run.state.params == before).all(), "the state that was must stay as it was"
    assert spare.state is old, "its room is that of the next block"

    plain = plan_block(run, 1, BlockHeader(steps=steps, returns=returns), GROUPS)
    staged = StagedGradients(run.spec, run.device, plain, values)
    expected_sums = staged.sums()
    expected = staged.apply(run.state, None, expected_sums)
    assert found_sums.tolist() == expected_sums.tolist()
    assert (state.params == expected.params).all()
    half = slice(0, NORM_CHUNK + 5)  # the second group keeps no maximum
    for slot, values_of_slot in expected.slots.items():
        columns = half if slot == "max_exp_avg_sq" else slice(None)
        assert (state.slots[slot][:, columns] == values_of_slot[:, columns]).all(), slot
    for part, answer in answers.items():
        if returns is Returns.TRAJECTORY:
            assert plain.trajectory is not None
            assert (answer == plain.trajectory[:, slice(*part)]).all()
        else:
            assert (answer == expected.params[:, slice(*part)]).all()


@pytest.mark.parametrize("parts", CUTS.values(), ids=CUTS)
def test_the_first_number_that_is_none_is_found_in_every_row(run: Run, parts: Sequence[Range]) -> None:
    values = gradients(4)
    values[1, [3, 700, ELEMENTS - 1]] = [np.nan, np.inf, np.nan]
    values[2, NORM_CHUNK + 6] = -np.inf
    values[3, [NORM_CHUNK - 1, NORM_CHUNK]] = [np.inf, np.nan]
    block = plan_block(run, 1, BlockHeader(steps=4), GROUPS)
    early = EarlyUpdate.into(SpareState(run), run, block, GradientArray(run))
    assert early is not None
    for part in parts:
        early.take(values[:, slice(*part)], part)
    assert np.isfinite(early.sums()).tolist() == [True, False, False, False]
    staged = StagedGradients(run.spec, run.device, block, values)
    for row in (1, 2, 3):
        found, expected = early.first_non_finite(row), staged.first_non_finite(row)
        assert str(found) == str(expected) != "None"  # NaN differs from itself
    assert early.first_non_finite(0) is None


def test_a_second_state_never_takes_the_last_quarter_of_the_memory(run: Run) -> None:
    spare = SpareState(run)
    size_bytes = 4 * run.spec.vector_bytes
    used = run.budget.used_bytes
    rest = run.budget.reserve(run.budget.free_bytes - run.budget.limit_bytes // 4 - size_bytes + 1, "others")
    assert spare.get() is None
    rest.release()
    assert spare.get() is spare.get() is not None
    assert run.budget.used_bytes == used + size_bytes
    spare.release()
    assert run.budget.used_bytes == used
    assert spare.state is None


def test_a_device_without_room_for_a_second_state_does_without(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(run.device, "allocate", allocate)
    used = run.budget.used_bytes
    assert SpareState(run).get() is None
    assert run.budget.used_bytes == used


def test_the_sum_of_chunks_is_added_in_order() -> None:
    sums = np.array([[1e16, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert chunks.in_order(sums).tolist() == [1e16, 6.0]
    assert chunks.in_order(sums[:1]).tolist() == sums[0].tolist()
    assert chunks.in_order(np.empty((0, 2))).tolist() == [0.0, 0.0]
