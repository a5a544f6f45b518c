"""Parameters as INT8 differences: the worker's copy equals the server's baseline, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwire.server.encodings.deltas import DeltaBaseline, Part
from gradwire.server.memory.budget import MemoryBudget
from gradwire.wire.encoding import SLICE_BYTES
from gradwire.wire.errors import MemoryLimitExceeded
from gradwire.wire.int8 import Blocks, array_of, decode_rows, rows_of
from gradwire.wire.layout import Layout, Range

Values = npt.NDArray[Any]

LAYOUT = Layout([[("w", (700,)), ("b", (3,)), ("v", (512,))]])
BLOCKS = Blocks(LAYOUT)
SIZE = LAYOUT.elements


class Worker:
    """Reads replies as ``train.proto`` describes them."""

    def __init__(self) -> None:
        self.copy = np.full(SIZE, np.nan, np.float32)

    def take(self, part: Part) -> None:
        if not part.delta:
            assert part.data.dtype == np.float32
            self.copy[part.offset : part.offset + part.data.shape[1]] = part.data[0]
            return
        data = array_of(part.data.tobytes(), 1)
        place = BLOCKS.part_of(part.offset, data.shape[1])
        span = BLOCKS.span(place)
        self.copy[place.start : place.stop] += decode_rows(BLOCKS, span, rows_of(data, span))[0]


@pytest.fixture
def baseline() -> DeltaBaseline:
    return DeltaBaseline(BLOCKS, MemoryBudget(2**20), "a baseline")


def parameters(seed: int, scale: float = 1.0) -> Values:
    values: Values = np.random.default_rng(seed).standard_normal(SIZE, np.float32) * np.float32(scale)
    return values


def send(baseline: DeltaBaseline, worker: Worker, values: Values, offset: int = 0) -> list[bool]:
    """Sends new values of the elements from ``offset`` on; for each message whether it was a difference."""
    parts = list(baseline.encode(offset, values))
    for part in parts:
        worker.take(part)
    assert_equal(baseline, worker, Range(offset, offset + len(values)))
    return [part.delta for part in parts]


def assert_equal(baseline: DeltaBaseline, worker: Worker, part: Range) -> None:
    assert np.array_equal(worker.copy[part.start : part.stop], baseline.held(part), equal_nan=True)


def test_the_first_reply_is_full_and_exact_and_later_ones_are_differences(baseline: DeltaBaseline) -> None:
    worker, values = Worker(), parameters(0)
    assert send(baseline, worker, values) == [False]
    assert np.array_equal(worker.copy, values)
    moved = values + parameters(1, 1e-3)
    assert send(baseline, worker, moved) == [True]
    assert not np.array_equal(worker.copy, moved)
    np.testing.assert_allclose(worker.copy, moved, atol=5e-3 / 254 + 1e-7)


def test_what_a_difference_lost_is_part_of_the_next(baseline: DeltaBaseline) -> None:
    """The parameters rest: the worker's copy comes ever nearer."""
    worker, values = Worker(), parameters(0)
    send(baseline, worker, values)
    moved = values + parameters(1)
    errors = []
    for _ in range(4):
        send(baseline, worker, moved)
        errors.append(float(np.abs(worker.copy - moved).max()))
    assert errors[0] < 5 / 254
    assert errors[1] < errors[0] / 100
    assert errors[3] <= 5e-7


def test_nothing_moved_is_nothing_sent_but_zeros(baseline: DeltaBaseline) -> None:
    worker, values = Worker(), parameters(0)
    send(baseline, worker, values)
    (part,) = baseline.encode(0, values)
    assert not part.data.any()


def test_after_a_drop_the_next_reply_is_full(baseline: DeltaBaseline) -> None:
    worker = Worker()
    send(baseline, worker, parameters(0))
    baseline.drop()
    assert send(baseline, worker, parameters(1)) == [False]
    assert np.array_equal(worker.copy, parameters(1))


def test_tensors_that_were_absent_so_far_go_in_full(baseline: DeltaBaseline) -> None:
    worker = Worker()
    send(baseline, worker, parameters(0)[:700])
    assert send(baseline, worker, parameters(1)) == [True, False]
    assert np.array_equal(worker.copy[700:], parameters(1)[700:])


def test_ranges_that_cut_blocks_go_in_full_at_the_cuts(baseline: DeltaBaseline) -> None:
    worker = Worker()
    send(baseline, worker, parameters(0))
    assert send(baseline, worker, parameters(1)[100:800], 100) == [False, True, False]
    assert np.array_equal(worker.copy[100:256], parameters(1)[100:256])
    assert send(baseline, worker, parameters(2)[10:20], 10) == [False]
    assert send(baseline, worker, parameters(3)) == [True]


@given(st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE), st.booleans()), max_size=12))
def test_the_copies_stay_equal_whatever_is_sent(sends: list[tuple[int, int, bool]]) -> None:
    baseline, worker = DeltaBaseline(BLOCKS, MemoryBudget(2**20), "a baseline"), Worker()
    known = np.zeros(SIZE, bool)
    for seed, (a, b, drop) in enumerate(sends):
        if drop:
            baseline.drop()
        start, stop = min(a, b), max(a, b)
        send(baseline, worker, parameters(seed)[start:stop], start)
        known[start:stop] = True
        assert np.array_equal(worker.copy[known], baseline.held(Range(0, SIZE))[known])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_arrive_as_they_are_and_do_not_stay(baseline: DeltaBaseline, bad: float) -> None:
    worker = Worker()
    send(baseline, worker, parameters(0))
    values = parameters(1)
    values[300] = bad
    assert send(baseline, worker, values) == [False]
    assert np.array_equal(worker.copy, values, equal_nan=True)
    assert send(baseline, worker, parameters(2)) == [False]
    assert send(baseline, worker, parameters(3)) == [True]
    assert np.isfinite(worker.copy).all()


def test_a_difference_beyond_float32_goes_in_full(baseline: DeltaBaseline) -> None:
    worker, largest = Worker(), float(np.finfo(np.float32).max)
    send(baseline, worker, np.full(SIZE, -largest, np.float32))
    assert send(baseline, worker, np.full(SIZE, largest, np.float32)) == [False]
    assert (worker.copy == np.float32(largest)).all()


def test_float64_parameters_arrive_with_float32_s_digits(baseline: DeltaBaseline) -> None:
    worker = Worker()
    values = parameters(0).astype(np.float64) + 1e-12
    assert send(baseline, worker, values) == [False]
    for step in range(3):
        assert send(baseline, worker, values + 1e-3 * (step > 0)) == [True]
    np.testing.assert_allclose(worker.copy, values + 1e-3, rtol=1e-6, atol=1e-7)


def test_long_parts_are_cut_to_slices() -> None:
    layout = Layout([[("w", (1_500_000,))]])
    blocks = Blocks(layout)
    baseline = DeltaBaseline(blocks, MemoryBudget(2**24), "a baseline")
    zeros = np.zeros(1_500_000, np.float32)
    assert {part.data.nbytes <= SLICE_BYTES for part in baseline.encode(0, zeros)} == {True}
    deltas = list(baseline.encode(0, zeros))
    assert [part.delta for part in deltas] == [True] * 3
    assert sum(part.data.nbytes for part in deltas) == 1_500_000 + 4 * blocks.count


def test_its_memory_is_counted_and_given_back() -> None:
    budget = MemoryBudget(10_000)
    baseline = DeltaBaseline(BLOCKS, budget, "a baseline")
    size = 4 * SIZE + BLOCKS.count + BLOCKS.nbytes
    assert budget.used_bytes == size
    DeltaBaseline(BLOCKS, budget, "a second baseline")
    with pytest.raises(MemoryLimitExceeded, match=f"a third baseline needs {size} bytes"):
        DeltaBaseline(BLOCKS, budget, "a third baseline")
    baseline.release()
    baseline.release()
    assert budget.used_bytes == size
