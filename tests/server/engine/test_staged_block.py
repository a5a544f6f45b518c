"""What a block is applied with: overrides, and segments of tensors that share their scalars."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwire.server.devices.base import Segment
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.engine.block import BlockHeader
from gradwire.server.engine.block_plan import planning_work
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import RunSpec
from gradwire.server.engine.staged_block import clip_segments, override_groups, scalar_bytes, segments_of
from gradwire.server.engine.threads import is_short
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.wire.errors import InvalidHyperparameter, ProtocolViolation
from gradwire.wire.layout import Layout, Range

GROUPS = (AdamHyperparameters(lr=0.1), AdamHyperparameters(lr=0.2, amsgrad=True))


@pytest.fixture
def run() -> Iterator[Run]:
    layout = Layout([[("a", (3,)), ("b", (2,)), ("empty", (0,)), ("c", (4,))], [("d", (5,)), ("e", ())]])
    spec = RunSpec("runs/x", layout, np.dtype(np.float32), GROUPS)
    with ThreadPoolExecutor(1) as executor:
        yield Run(spec, CpuDevice(1), MemoryBudget(2**20), executor)


def spans(segments: list[Segment]) -> list[tuple[int, int]]:
    return [(segment.start, segment.stop) for segment in segments]


def segments(run: Run, header: BlockHeader) -> list[Segment]:
    return segments_of(run.spec, run.step, run.tensor_steps, header, GROUPS)


def test_a_whole_group_is_one_segment(run: Run) -> None:
    assert spans(segments(run, BlockHeader())) == [(0, 9), (9, 15)]


def test_absent_tensors_are_in_no_segment(run: Run) -> None:
    assert spans(segments(run, BlockHeader(absent_tensors=frozenset({1, 4})))) == [(0, 3), (5, 9), (14, 15)]
    assert segments(run, BlockHeader(absent_tensors=frozenset(range(6)))) == []


def test_tensors_of_different_t_are_apart_and_share_no_scalars(run: Run) -> None:
    run.tensor_steps[:] = [7, 7, 0, 3, 7, 7]
    found = segments(run, BlockHeader(steps=2))
    assert spans(found) == [(0, 5), (5, 9), (9, 15)]
    dtype = run.spec.dtype
    assert np.array_equal(found[0].varying, GROUPS[0].varying(1, 8, 2, dtype))
    assert np.array_equal(found[1].varying, GROUPS[0].varying(1, 4, 2, dtype))
    assert np.array_equal(found[2].varying, GROUPS[1].varying(1, 8, 2, dtype))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=6), min_size=1, max_size=3),
    st.data(),
)
def test_segments_are_those_of_a_walk_from_tensor_to_tensor(
    groups: list[list[tuple[int, int]]], data: st.DataObject
) -> None:
    """``groups``: (elements, t) of their tensors."""
    sizes = [[(f"{g}.{i}", (size,)) for i, (size, _) in enumerate(group)] for g, group in enumerate(groups)]
    hypers = tuple(AdamHyperparameters(lr=0.1 * (g + 1)) for g in range(len(groups)))
    spec = RunSpec("runs/x", Layout(sizes), np.dtype(np.float32), hypers)
    steps = np.array([t for group in groups for _, t in group], np.int64)
    absent = frozenset(data.draw(st.sets(st.integers(0, len(steps) - 1))))
    expected: list[tuple[int, int, int, int]] = []  # start, stop, group, t
    joined = False
    for index, tensor in enumerate(spec.layout.tensors):
        if index in absent and tensor.size:
            joined = False
        elif tensor.size:
            if joined and expected[-1][2:] == (tensor.group, steps[index]):
                expected[-1] = (expected[-1][0], tensor.stop, *expected[-1][2:])
            else:
                expected.append((tensor.start, tensor.stop, tensor.group, int(steps[index])))
            joined = True
    header = BlockHeader(absent_tensors=absent)
    found = segments_of(spec, 5, steps, header, hypers)
    assert spans(found) == [part[:2] for part in expected]
    for segment, (_, _, group, t) in zip(found, expected, strict=True):
        assert np.array_equal(segment.varying, hypers[group].varying(6, t + 1, 1, spec.dtype))
    keys = {part[2:] for part in expected}
    assert scalar_bytes(spec, steps, header) == 4 * sum(hypers[group].kernel.varying for group, _ in keys)


def test_tensors_of_equal_numbers_share_their_scalars(run: Run) -> None:
    """A run may have as many groups as tensors."""
    same = (GROUPS[0], GROUPS[0])
    one, other = segments_of(run.spec, 0, run.tensor_steps, BlockHeader(), same)
    assert one.varying is other.varying
    assert one.constants is other.constants


def test_a_block_of_many_pieces_is_planned_off_the_event_loop() -> None:
    layout = Layout([[(str(index), (1,)) for index in range(4000)]])
    spec = RunSpec("runs/x", layout, np.dtype(np.float32), GROUPS[:1])
    with ThreadPoolExecutor(1) as executor:
        run = Run(spec, CpuDevice(1), MemoryBudget(2**24), executor)
        assert is_short(planning_work(run, BlockHeader()))
        assert is_short(planning_work(run, BlockHeader(absent_tensors=frozenset({7}))))
        assert not is_short(planning_work(run, BlockHeader(absent_tensors=frozenset(range(0, 4000, 2)))))
        run.tensor_steps[::2] = 1
        assert not is_short(planning_work(run, BlockHeader()))
        run.groups *= 4000
        run.tensor_steps[:] = 1
        assert not is_short(planning_work(run, BlockHeader()))


def test_clipping_keeps_what_lies_in_the_part(run: Run) -> None:
    found = segments(run, BlockHeader())
    assert spans(clip_segments(found, Range(2, 11))) == [(2, 9), (9, 11)]
    assert spans(clip_segments(found, Range(9, 10))) == [(9, 10)]
    assert clip_segments(found, Range(15, 15)) == []


def test_overrides_change_the_groups_they_name() -> None:
    changed = override_groups(GROUPS, {1: {"lr": 0.9, "beta1": 0.5}})
    assert changed[0] is GROUPS[0]
    assert changed[1] == AdamHyperparameters(lr=0.9, beta1=0.5, amsgrad=True)
    assert GROUPS[1].lr == 0.2, "they take effect at commit, not before"
    assert override_groups(GROUPS, {}) is GROUPS


def test_override_out_of_range_names_the_group() -> None:
    with pytest.raises(InvalidHyperparameter, match="override of group 1: lr is nan"):
        override_groups(GROUPS, {1: {"lr": float("nan")}})


@pytest.mark.parametrize("group", [2, 2**32 - 1])
def test_override_of_a_group_that_is_not_there(group: int) -> None:
    with pytest.raises(ProtocolViolation, match=f"names group {group}; this run has groups 0 to 1"):
        override_groups(GROUPS, {group: {"lr": 1.0}})


def test_a_bound_beyond_what_a_float32_holds_is_none() -> None:
    """And says nothing about it: warnings are errors here."""
    group = AdamHyperparameters(low=-1e308, high=1e308)
    spec = RunSpec("runs/x", Layout([[("a", (1,))]]), np.dtype(np.float32), (group,))
    (segment,) = segments_of(spec, 0, np.zeros(1, np.int64), BlockHeader(), (group,))
    assert segment.constants[-2:].tolist() == [-np.inf, np.inf]
