"""What a run does now: how fast it is, and what is said of who waits."""

from __future__ import annotations

import pytest

from gradwire.server.engine import activity
from gradwire.server.engine.activity import (
    Activity,
    WaitsFor,
    wait_for_block,
    wait_for_gradients,
)
from tests.server.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(activity, "perf_counter", clock.monotonic)
    return clock


def apply(run: Activity, clock: Clock, blocks: int, every_seconds: float, steps: int = 1) -> None:
    for _ in range(blocks):
        clock.now += every_seconds
        run.applied(steps, clock.now)


def test_nothing_has_moved_yet(clock: Clock) -> None:
    run = Activity()
    assert run.steps_per_second == 0
    assert run.idle_seconds is None


def test_the_first_block_says_nothing_of_how_long_it_took(clock: Clock) -> None:
    run = Activity()
    apply(run, clock, 1, 5.0, steps=1_000_000)
    clock.now += 1
    assert run.steps_per_second == 0
    assert run.idle_seconds == 1


@pytest.mark.parametrize("every_seconds", [0.001, 0.5, 2.0, 20.0, 600.0])
def test_a_steady_run_has_its_rate(clock: Clock, every_seconds: float) -> None:
    run = Activity()
    apply(run, clock, 50, every_seconds, steps=3)
    assert run.steps_per_second == pytest.approx(3 / every_seconds)


def test_a_rate_follows_what_happens_now(clock: Clock) -> None:
    run = Activity()
    apply(run, clock, 10_000, 0.01)
    apply(run, clock, 2 * 3 * 10, 0.1)  # two windows of a tenth of that
    assert run.steps_per_second == pytest.approx(10, rel=0.05)


def test_a_run_that_stands_still_has_none(clock: Clock) -> None:
    run = Activity()
    apply(run, clock, 1000, 0.01)
    clock.now += 2.9
    assert 0 < run.steps_per_second < 100
    clock.now += 0.2
    assert run.steps_per_second == 0
    assert run.idle_seconds == pytest.approx(3.1)


def test_one_of_slow_steps_stands_still_later(clock: Clock) -> None:
    run = Activity()
    apply(run, clock, 10, 20.0)
    clock.now += 59
    assert 0 < run.steps_per_second < 1 / 20
    clock.now += 2
    assert run.steps_per_second == 0


def test_what_was_before_a_pause_is_not_counted(clock: Clock) -> None:
    run = Activity()
    apply(run, clock, 1000, 0.01)
    clock.now += 3600
    apply(run, clock, 100, 0.01)
    assert run.steps_per_second == pytest.approx(100, rel=0.02)


def test_skipped_steps_move_a_run_and_are_none(clock: Clock) -> None:
    run = Activity()
    apply(run, clock, 10, 1.0, steps=0)
    assert run.steps_per_second == 0
    assert run.idle_seconds == 0


def test_a_wait_says_since_when(clock: Clock) -> None:
    found = wait_for_gradients(12, 3 * 2**20, 25 * 2**20, clock.now - 14)
    assert (found.kind, found.text) == (WaitsFor.GRADIENTS, "gradients of block 12, 3 of 25 MiB here")
    assert found.seconds == 14
    assert wait_for_block(7, clock.now) == (WaitsFor.BLOCK, "block 7", 0)
