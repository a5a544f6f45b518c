"""Each block has one result, and its phases are all of its time."""

from __future__ import annotations

import pytest

from gradwire.server.metrics import blocks
from gradwire.server.metrics.blocks import BlockCounters
from tests.server.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(blocks, "perf_counter", clock.monotonic)
    return clock


def results(counters: BlockCounters) -> dict[str, int]:
    found = {name: getattr(counters, name) for name in ("applied", "repeated", "refused", "abandoned")}
    return {name: count for name, count in found.items() if count}


def test_the_phases_of_a_block(clock: Clock) -> None:
    counters = BlockCounters()
    watch = counters.watch()
    watch.begin()
    clock.now += 4
    watch.begin()  # a further message
    assert counters.oldest_seconds == 4
    watch.whole()
    clock.now += 3  # of which the disk took one
    watch.committed(steps=10, skipped=2, journal_seconds=1.0)
    clock.now += 5
    watch.answered()
    counters.fold()
    assert (counters.steps, counters.skipped_steps, results(counters)) == (10, 2, {"applied": 1})
    seconds = {name: getattr(counters, f"{name}_seconds") for name in ("receive", "compute", "journal", "answer")}
    assert {name: histogram.total for name, histogram in seconds.items()} == {
        "receive": 4,
        "compute": 2,
        "journal": 1,
        "answer": 5,
    }
    assert [sum(histogram.counts) for histogram in seconds.values()] == [1, 1, 1, 1]
    assert counters.oldest_seconds == 0
    watch.close()
    assert results(counters) == {"applied": 1}
    assert not counters.watches


def test_a_block_that_waited_for_no_disk_is_none_of_the_journals(clock: Clock) -> None:
    counters = BlockCounters()
    watch = counters.watch()
    watch.begin()
    watch.whole()
    watch.committed(1, 0, 0.0)
    watch.answered()
    counters.fold()
    assert sum(counters.journal_seconds.counts) == 0
    assert sum(counters.compute_seconds.counts) == 1


def test_how_else_a_block_may_end(clock: Clock) -> None:
    counters = BlockCounters()
    one, other = counters.watch(), counters.watch()
    one.begin()
    one.repeated()
    one.begin()
    one.refused()
    one.close()  # it has been counted
    other.refused()  # between blocks: the stream ends, and no block does
    assert results(counters) == {"repeated": 1, "refused": 1}
    other.begin()
    other.close()
    assert results(counters) == {"repeated": 1, "refused": 1, "abandoned": 1}


def test_a_block_whose_answer_fails_has_been_applied_and_nothing_else(clock: Clock) -> None:
    counters = BlockCounters()
    for end in ("refused", "close"):
        watch = counters.watch()
        watch.begin()
        watch.whole()
        watch.committed(3, 1, 0.0)
        getattr(watch, end)()
        watch.close()
        watch.answered()
    counters.fold()
    assert results(counters) == {"applied": 2}
    assert (counters.steps, counters.skipped_steps) == (6, 2)
    assert not counters.noted


def test_moments_that_wait_are_bounded(clock: Clock) -> None:
    counters = BlockCounters()
    watch = counters.watch()
    for _ in range(blocks.FOLDED_AT_ONCE + 10):
        watch.begin()
        clock.now += 1
        watch.committed(1, 0, 0.0)
        watch.answered()
    assert len(counters.noted) == 10
    assert sum(counters.compute_seconds.counts) == blocks.FOLDED_AT_ONCE
    counters.fold()
    counters.fold()
    assert sum(counters.compute_seconds.counts) == counters.compute_seconds.total == blocks.FOLDED_AT_ONCE + 10


def test_the_oldest_of_several_is_told(clock: Clock) -> None:
    counters = BlockCounters()
    one, other = counters.watch(), counters.watch()
    one.begin()
    clock.now += 10
    other.begin()
    clock.now += 1
    assert counters.oldest_seconds == 11
    one.close()
    assert counters.oldest_seconds == 1
