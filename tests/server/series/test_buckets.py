"""What a series keeps: the same buckets however the values came, in bounded room."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwire.server.series.buckets import BUCKET_BYTES, FIRST_BUCKETS, Buckets
from gradwire.wire.series import MAX_BUCKETS, buckets_of, merged, width_for

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=6)


def of_values(values: npt.NDArray[np.float64], first_step: int = 1) -> Buckets:
    buckets = Buckets()
    for step, value in enumerate(values.tolist(), first_step):
        buckets.add(step, value)
    return buckets


def numbers(count: int) -> npt.NDArray[np.float64]:
    """Whole ones, whose sums are exact in any order."""
    return np.random.default_rng(count).integers(-1000, 1000, count).astype(np.float64)


def expected(values: npt.NDArray[np.float64], first_step: int, width: int) -> npt.NDArray[np.float64]:
    """The buckets of a width, by a plain loop."""
    groups: dict[int, list[float]] = {}
    for step, value in enumerate(values.tolist(), first_step):
        groups.setdefault(step - step % width, []).append(value)
    rows = [(start, v[0], min(v), max(v), v[-1], sum(v), len(v)) for start, v in groups.items()]
    return np.array(rows).T


@given(count=st.integers(1, 9000), first_step=st.integers(1, 10_000))
@settings(max_examples=15, deadline=None)
def test_values_one_by_one_are_in_the_buckets_of_the_least_width(count: int, first_step: int) -> None:
    values = numbers(count)
    buckets = of_values(values, first_step)
    assert buckets.width == width_for(first_step, first_step + count - 1)
    assert len(buckets) <= MAX_BUCKETS
    np.testing.assert_array_equal(buckets.table(), expected(values, first_step, buckets.width))


@given(lengths=LENGTHS, blocks=st.lists(st.booleans(), min_size=6, max_size=6))
@settings(max_examples=25, deadline=None)
def test_the_buckets_are_the_same_wherever_the_values_are_cut_into_blocks(
    lengths: list[int], blocks: list[bool]
) -> None:
    values = numbers(sum(lengths))
    whole = of_values(values)
    cut = Buckets()
    at = 0
    for length, as_block in zip(lengths, blocks, strict=False):
        part = values[at : at + length]
        if as_block:
            cut.add_buckets(*buckets_of(part, at + 1), at + length)
        else:
            for step, value in enumerate(part.tolist(), at + 1):
                cut.add(step, value)
        at += length
    assert (cut.width, cut.last_step, cut.last) == (whole.width, whole.last_step, whole.last)
    np.testing.assert_array_equal(cut.table(), whole.table())


@given(lengths=st.lists(st.integers(1, MAX_BUCKETS // 8), min_size=1, max_size=8), kept=st.integers(0, 8))
@settings(max_examples=25, deadline=None)
def test_cut_and_gone_on_anew_is_as_never_having_gone_on(lengths: list[int], kept: int) -> None:
    bounds = [0, *np.cumsum(lengths).tolist()]
    step = bounds[min(kept, len(lengths))]
    values = numbers(bounds[-1])
    buckets = of_values(values)  # of one step each: what lies across a cut is forgotten whole
    buckets.cut(step)
    straight = of_values(values[:step])
    np.testing.assert_array_equal(buckets.table(), straight.table())
    for series in (buckets, straight):
        series.add(step + 1, 5.0)
        series.add_buckets(*buckets_of(values, step + 2), step + 1 + len(values))
    np.testing.assert_array_equal(buckets.table(), straight.table())


def test_a_cut_forgets_the_bucket_that_lies_across_it() -> None:
    buckets = of_values(numbers(2 * MAX_BUCKETS + 100))
    assert buckets.width == 4
    buckets.cut(401)  # of the bucket 400 .. 403
    assert buckets.last_step == 399
    assert buckets.table()[0, -1] == 396


def test_values_with_gaps_keep_their_steps_until_there_are_too_many() -> None:
    buckets = Buckets()
    for step in range(0, 1000 * MAX_BUCKETS, 1000):
        buckets.add(step, 1.0)
    assert buckets.width == 1
    buckets.add(1000 * MAX_BUCKETS, 1.0)
    assert (buckets.width, buckets.last_step) == (1024, 1000 * MAX_BUCKETS)


def test_room_doubles_from_a_small_one_to_the_largest() -> None:
    asked: list[int] = []

    def may_grow(size_bytes: int) -> bool:
        asked.append(size_bytes)
        return True

    buckets = Buckets(may_grow)
    assert buckets.size_bytes == FIRST_BUCKETS * BUCKET_BYTES
    for step in range(10 * MAX_BUCKETS):
        buckets.add(step, 1.0)
    assert asked == [BUCKET_BYTES * n for n in (64, 128, 256, 512, 1024)]
    assert buckets.size_bytes == FIRST_BUCKETS * BUCKET_BYTES + sum(asked) == MAX_BUCKETS * BUCKET_BYTES


def test_without_room_buckets_become_wider_and_nothing_is_lost() -> None:
    values = numbers(3000)
    single, block = Buckets(lambda size_bytes: False), Buckets(lambda size_bytes: False)
    for step, value in enumerate(values.tolist()):
        single.add(step, value)
    block.add_buckets(*buckets_of(values, 0), len(values) - 1)
    assert single.width == block.width == width_for(0, 2999, FIRST_BUCKETS)
    np.testing.assert_array_equal(single.table(), expected(values, 0, single.width))
    np.testing.assert_array_equal(block.table(), single.table())


def test_a_minimum_leaves_nan_out_and_a_total_does_not() -> None:
    for order in ([math.nan, 2.0, 1.0], [2.0, math.nan, 1.0], [math.nan] * 3):
        values = np.array(order)
        single = Buckets()
        single.width = 4
        for value in order:
            single.add(1, value)
        table, _ = buckets_of(values, 0)
        np.testing.assert_array_equal(single.table()[2:4, 0], [np.fmin.reduce(values), np.fmax.reduce(values)])
        np.testing.assert_array_equal(merged(table, 4)[2:], single.table()[2:])
        assert math.isnan(single.table()[5, 0])
        assert single.table()[6, 0] == 3


def test_infinities_stay_what_they_are() -> None:
    buckets = of_values(np.array([math.inf, 1.0, -math.inf]))
    np.testing.assert_array_equal(buckets.table()[1], [math.inf, 1.0, -math.inf])
    np.testing.assert_array_equal(merged(buckets.table(), 4)[2:4, 0], [-math.inf, math.inf])


def test_a_value_of_an_earlier_step_counts_with_the_newest() -> None:
    buckets = of_values(np.array([1.0, 2.0]))
    buckets.add(1, 3.0)
    np.testing.assert_array_equal(buckets.table()[:, -1], [2, 2, 2, 3, 3, 5, 2])
