"""Values on their way into a block's header: which steps they are of, and how few messages they need."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from gradwire.client.training.logged import (
    LEAST_FOLDED,
    Logged,
    Parts,
    joined,
    scalar_messages,
    values_between_blocks,
    values_of_block,
)
from gradwire.v1 import train_pb2
from gradwire.wire.series import MAX_BUCKETS, buckets_of, merged, width_for


def message(parts: Parts, before: int, steps: int) -> train_pb2.Scalar:
    (found,) = scalar_messages(parts, before, steps)
    return found


def test_a_number_is_of_the_last_step_and_needs_no_more_than_itself() -> None:
    found = message(values_of_block({"loss": np.float32(0.5)}, 8, None), 7, 1)
    assert found == train_pb2.Scalar(name="loss", values=[0.5])
    assert math.isnan(message(values_of_block({"loss": math.nan}, 8, None), 7, 1).values[0])


def test_few_values_of_a_block_go_as_they_are() -> None:
    found = message(values_of_block({"loss": [1.0, 2.0, 3.0]}, 8, 3), 7, 3)
    assert (list(found.values), list(found.block_steps)) == ([1, 2, 3], [0, 1, 2])


@pytest.mark.parametrize(("before", "steps"), [(0, 2049), (1000, 5000), (123_456, 20_000)])
def test_many_go_as_buckets_at_multiples_of_their_width(before: int, steps: int) -> None:
    values = np.random.default_rng(0).integers(-9, 9, steps).astype(np.float64)
    found = message(values_of_block({"loss": values}, before + 1, steps), before, steps)
    buckets = found.buckets
    width = width_for(before + 1, before + steps)
    assert (buckets.bucket_steps, not found.values) == (width, True)
    assert len(buckets.count) <= MAX_BUCKETS
    first_steps = np.array(found.block_steps) + before + 1
    assert (first_steps % width == 0).all()
    single = np.concatenate([buckets_of(values[k : k + 1], before + 1 + k)[0] for k in range(steps)], axis=1)
    expected = merged(single, width)
    columns = [first_steps, buckets.first, buckets.minimum, buckets.maximum, buckets.last, buckets.total, buckets.count]
    np.testing.assert_array_equal(np.array(columns, np.float64), expected)


def test_values_that_have_waited_are_of_the_steps_that_they_were_given_for() -> None:
    waiting = joined(
        values_between_blocks({"loss": [1.0, 2.0]}, None, 10),
        values_between_blocks({"loss": 3.0}, None, 10),
        values_of_block({"loss": 4.0}, 11, None),
    )
    found = message(waiting, 10, 1)
    assert list(found.block_steps) == [-2, -1, 0]
    assert (list(found.buckets.count), list(found.buckets.first)) == ([1, 1, 2], [1, 2, 3])
    at = values_between_blocks({"loss": [5.0, 6.0]}, np.array([0, 7]), 10)
    assert list(message(at, 10, 1).block_steps) == [-11, -4]


def test_more_values_than_a_block_may_bring_are_put_together() -> None:
    logged = Logged()
    for step in range(5000):
        logged.add(values_between_blocks({"loss": [1.0]}, [step], 5000))
    found = message(logged.take(), 5000, 1)
    assert sum(found.buckets.count) == 5000
    assert (len(found.buckets.count), found.buckets.bucket_steps) == (1250, 4)
    assert not logged


def test_what_is_put_back_comes_before_what_is_newer() -> None:
    logged = Logged()
    logged.add({"loss": [1.0]})
    taken = logged.take()
    logged.add({"loss": [2.0], "other": [3.0]})
    logged.put_back(taken)
    assert logged.take() == {"loss": [1.0, 2.0], "other": [3.0]}


def test_what_is_undone_goes_and_what_is_of_the_next_block_stays() -> None:
    logged = Logged()
    logged.add(values_between_blocks({"loss": [1.0, 2.0], "gone": [9.0]}, None, 10))
    logged.add({"loss": [3.0]})
    logged.add({"wide": [(buckets_of(np.arange(2.0), 8)[0][:, :1], 2)]})  # of steps 8 and 9
    logged.cut(9)
    (loss, wide) = scalar_messages(logged.take(), 9, 1)
    assert (loss.name, list(loss.values), list(loss.block_steps)) == ("loss", [1, 3], [-1, 0])
    assert wide.name == "wide"
    logged.add({"wide": [(buckets_of(np.arange(2.0), 8)[0][:, :1], 2)]})
    logged.cut(8)
    assert not logged, "of a bucket that lies across the cut nobody can tell what is left"


def test_no_value_is_of_a_later_step_than_its_block() -> None:
    undone = values_between_blocks({"loss": [1.0, 2.0, 3.0], "gone": [9.0]}, None, 10)
    (found,) = scalar_messages(undone, 7, 1)
    assert (found.name, list(found.values), list(found.block_steps)) == ("loss", [1], [0])


@pytest.mark.parametrize("value", ["0.3", None, True, [[1.0]], [1.0, 2.0], ["a"], {}, [1j]])
def test_what_is_no_value_of_a_step_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        values_of_block({"loss": value}, 1, 3)
    with pytest.raises((TypeError, ValueError)):
        values_of_block({"loss": value}, 1, None)


@pytest.mark.parametrize("log", ["loss", [0.3], [("loss", 0.3)], 0.3, 0])
def test_only_names_and_values_can_be_logged(log: Any) -> None:
    with pytest.raises(TypeError, match=r"expected names of series and their values, such as \{'loss': 0.3\}"):
        values_of_block(log, 1, None)
    with pytest.raises(TypeError, match="expected names of series and their values"):
        values_between_blocks(log, None, 3)


def test_too_many_series_are_refused_and_those_that_wait_stay() -> None:
    logged = Logged()
    logged.add({f"a {number}": [1.0] for number in range(48)})
    with pytest.raises(ValueError, match="49 series are logged; expected at most 48"):
        logged.add({"one more": [1.0]})
    assert len(logged.take()) == 48
    logged.add({f"a {number}": [1.0] for number in range(48)})
    assert len(logged.take()) == 48, "what has gone counts no more"


def test_what_was_put_back_counts_with_what_is_newer() -> None:
    logged = Logged()
    logged.add({f"a {number}": [1.0] for number in range(40)})
    taken = logged.take()
    logged.add({f"b {number}": [1.0] for number in range(8)})
    logged.put_back(taken)
    for _ in range(2):
        with pytest.raises(ValueError, match="49 series are logged"):
            logged.add({"one more": [1.0]})
        logged.add({"b 1": [2.0]})
    assert len(logged.take()) == 48


def test_to_log_takes_no_longer_where_much_waits() -> None:
    """It takes 0.2 s; to go through all that waits each time took half a minute."""
    logged = Logged()
    began = time.process_time()
    for number in range(20_000):
        logged.add({"loss": [float(number)]})
    assert time.process_time() - began < 5


@pytest.mark.parametrize("seed", range(6))
def test_what_waits_for_days_is_bounded_and_arrives_as_it_would_have(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Values of steps that were taken, then those of the next block, then both in turn."""
    monkeypatch.setattr("gradwire.client.training.logged.LEAST_FOLDED", 100)
    random = np.random.default_rng(seed)
    logged = Logged()
    plain: Parts = {}
    for turn in range(3000):
        value = float(random.integers(-1000, 1000))  # whose sums are exact in any order
        if turn < 1000 or (turn > 2000 and turn % 2):
            steps = np.sort(random.integers(0, 20_000, random.integers(1, 40)))
            parts = values_between_blocks({"loss": steps + value}, steps, 20_000)
        else:
            parts = values_between_blocks({"loss": value, "other": -value}, None, 20_000)
        logged.add(parts)
        plain = joined(plain, parts)
    waiting = logged.take()
    columns = sum(1 if isinstance(part, float) else part[0].shape[1] for values in waiting.values() for part in values)
    assert columns < 4 * MAX_BUCKETS
    assert scalar_messages(waiting, 20_000, 5) == scalar_messages(plain, 20_000, 5)


def test_folded_values_that_are_put_back_go_with_the_block_that_comes_then() -> None:
    logged = Logged()
    for value in range(LEAST_FOLDED + 1):
        logged.add({"loss": [float(value)]})
    parts = logged.take()
    assert len(parts["loss"]) == 1
    logged.put_back(parts)
    logged.cut(3)
    (loss,) = scalar_messages(logged.take(), 7, 2)
    assert list(loss.block_steps) == [1]
    assert (list(loss.buckets.first), list(loss.buckets.last)) == ([0.0], [float(LEAST_FOLDED)])
    assert list(loss.buckets.count) == [LEAST_FOLDED + 1]
