"""What a block is applied with: overrides, and segments of tensors that share their scalars."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gradwire.server.devices.base import Segment
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.engine.block import BlockHeader
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import RunSpec
from gradwire.server.engine.staged_block import clip_segments, override_groups, segments_of
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
