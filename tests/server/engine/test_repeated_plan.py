"""A plan that is repeated is the one that would be made anew; where that would be another one, none is repeated."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.engine.block import BlockHeader, GradientSlice, Returns
from gradwire.server.engine.block_plan import check_header, plan_block
from gradwire.server.engine.gradients import StagedGradients
from gradwire.server.engine.repeated_plan import RepeatedPlan
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import NonFinitePolicy, RunSpec
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.engine.workers import Holder
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.optimizers.schedules import Schedule
from gradwire.server.series.scalars import Scalar
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.layout import Layout

LAYOUT = Layout([[("none", (0,)), ("a", (2,)), ("b", (3,))], [("c", ())]])
GROUPS = (AdamHyperparameters(lr=0.01, amsgrad=True, schedule=Schedule.INVERSE_SQRT), AdamHyperparameters(lr=0.1))
SPEC = RunSpec("runs/repeated", LAYOUT, np.dtype(np.float32), GROUPS, non_finite_policy=NonFinitePolicy.SKIP)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def run(executor: ThreadPoolExecutor) -> Run:
    return Run(SPEC, CpuDevice(1), MemoryBudget(2**30), executor)


@pytest.fixture
def holder(run: Run) -> Holder:
    return run.attach("worker", False, lambda error: None)


def part_of(run: Run, holder: Holder, header: BlockHeader) -> GradientSlice:
    sequence = holder.record.last_sequence + 1
    values = np.random.default_rng(sequence).normal(size=(header.steps, run.spec.layout.elements)).astype(np.float32)
    return GradientSlice(sequence, 0, values.tobytes(), True, header)


def values_of(part: GradientSlice) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    assert isinstance(part.data, bytes)
    return np.frombuffer(part.data, np.float32)


def planned(run: Run, part: GradientSlice) -> StagedBlock:
    assert part.header is not None
    block = plan_block(run, part.sequence, part.header, check_header(run, part.header, 0))
    block.received_bytes = len(part.data)
    return block


def commit(run: Run, holder: Holder, block: StagedBlock, part: GradientSlice) -> None:
    array = values_of(part).reshape(block.header.steps, -1)
    run.commit(holder, block, StagedGradients(run.spec, run.device, block, array))


def take(run: Run, holder: Holder, repeated: RepeatedPlan, header: BlockHeader) -> bool:
    """Plans and commits a block; whether it was planned by repeating the one before."""
    part = part_of(run, holder, header)
    block, anew = repeated.after(part), planned(run, part)
    if block is None:
        repeated.keep(anew)
        commit(run, holder, anew, part)
        return False
    for field in fields(StagedBlock):
        if field.name != "segments":
            assert getattr(block, field.name) == getattr(anew, field.name), field.name
    assert len(block.segments) == len(anew.segments)
    for ours, expected in zip(block.segments, anew.segments, strict=True):
        assert ours[:3] == expected[:3]
        assert ours.constants.tobytes() == expected.constants.tobytes()
        assert ours.varying.shape == expected.varying.shape
        assert ours.varying.tobytes() == expected.varying.tobytes()
    commit(run, holder, block, part)
    return True


@pytest.mark.parametrize("returns", [Returns.LAST, Returns.NONE])
@pytest.mark.parametrize("steps", [1, 7, 600])
def test_a_repeated_plan_is_the_one_that_would_be_made(run: Run, holder: Holder, steps: int, returns: Returns) -> None:
    header, repeated = BlockHeader(steps, returns), RepeatedPlan(run)
    assert [take(run, holder, repeated, header) for _ in range(150 // steps + 3)] == [
        False,
        *[True] * (150 // steps + 2),
    ]


def test_tensors_that_have_taken_other_numbers_of_steps(run: Run, holder: Holder) -> None:
    header, repeated = BlockHeader(), RepeatedPlan(run)
    for absent in ({1}, {3}, {0, 3}):
        assert not take(run, holder, repeated, BlockHeader(absent_tensors=frozenset(absent)))
    assert len(set(run.tensor_steps.tolist())) > 1
    assert [take(run, holder, repeated, header) for _ in range(70)] == [False, *[True] * 69]


@pytest.mark.parametrize(
    "header",
    [
        BlockHeader(overrides={1: {"lr": 0.5}}),
        BlockHeader(absent_tensors=frozenset({1})),
        BlockHeader(steps=1024),
    ],
    ids=["overrides", "absent tensors", "a receipt that is counted"],
)
def test_what_is_planned_anew_each_time(run: Run, holder: Holder, header: BlockHeader) -> None:
    repeated = RepeatedPlan(run)
    assert [take(run, holder, repeated, header) for _ in range(3)] == [False] * 3


def test_what_a_block_logs_may_be_new(run: Run, holder: Holder) -> None:
    repeated, logged = RepeatedPlan(run), (Scalar("loss", 1.0), Scalar("loss", 2.0), Scalar("accuracy", 0.5), None)
    headers = [BlockHeader(scalars=() if each is None else (each,)) for each in logged]
    assert [take(run, holder, repeated, header) for header in headers] == [False, True, True, True]
    parts = [run.series.read(name) for name in ("loss", "accuracy")]
    assert [part and part.last.tolist() for part in parts] == [[1.0, 2.0], [0.5]]
    assert not take(run, holder, repeated, BlockHeader(returns=Returns.NONE, scalars=(Scalar("loss", 3.0),)))
    with pytest.raises(ProtocolViolation):
        repeated.after(part_of(run, holder, BlockHeader(returns=Returns.NONE, scalars=(Scalar("lr", 1.0),))))


def test_after_anything_else_has_changed_the_run_it_is_planned_anew(run: Run, holder: Holder) -> None:
    header, repeated = BlockHeader(), RepeatedPlan(run)
    assert [take(run, holder, repeated, header) for _ in range(2)] == [False, True]
    part = part_of(run, holder, BlockHeader(overrides={0: {"lr": 0.5}}))
    commit(run, holder, planned(run, part), part)
    assert [take(run, holder, repeated, header) for _ in range(2)] == [False, True]
    run.replace(run.values, "values")
    holder = run.attach("worker", False, lambda error: None)
    assert [take(run, holder, repeated, header) for _ in range(2)] == [False, True]


def test_steps_that_were_skipped_are_planned_anew(run: Run, holder: Holder) -> None:
    header, repeated = BlockHeader(steps=2), RepeatedPlan(run)
    assert not take(run, holder, repeated, header)
    part = part_of(run, holder, header)
    bad = values_of(part).copy()
    bad[0] = np.nan
    block = repeated.after(part)
    assert block is not None
    commit(run, holder, block, part._replace(data=bad.tobytes()))
    assert run.step == 3
    assert [take(run, holder, repeated, header) for _ in range(2)] == [False, True]


def test_a_group_without_elements(executor: ThreadPoolExecutor) -> None:
    layout = Layout([[("a", (2,))], [("none", (0,))], [("b", (3,))]])
    run = Run(replace(SPEC, layout=layout, groups=(*GROUPS, GROUPS[0])), CpuDevice(1), MemoryBudget(2**30), executor)
    holder, repeated = run.attach("worker", False, lambda error: None), RepeatedPlan(run)
    header = BlockHeader()
    for _ in range(3):
        take(run, holder, repeated, header)
    assert run.step == 3


def test_only_a_message_that_is_alike_repeats(run: Run, holder: Holder) -> None:
    header, repeated = BlockHeader(), RepeatedPlan(run)
    assert not take(run, holder, repeated, header)
    part = part_of(run, holder, header)
    assert repeated.after(part._replace(offset=1)) is None
    assert repeated.after(part._replace(data=part.data[4:])) is None  # type: ignore[index]
    assert repeated.after(part._replace(header=BlockHeader())) is None
    assert repeated.after(part._replace(header=None)) is None
    assert repeated.after(part) is not None
