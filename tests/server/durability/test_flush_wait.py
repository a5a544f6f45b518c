"""The event loop waits for the disk itself where one run alone is journaled, and flushes are short."""

from __future__ import annotations

import pytest

from gradwire.server.durability import flush_wait
from gradwire.server.durability.flush_wait import LONGEST_WAIT_SECONDS, QUIET_SECONDS, FlushWait
from tests.server.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of(flush_wait, monkeypatch)


def flush(known: FlushWait, clock: Clock, run: object, seconds: float) -> float:
    """One block; returns what the event loop was allowed to wait."""
    allowed = known.ask(run)
    clock.now += seconds
    known.note_flushed()
    return allowed


def test_a_run_that_is_alone_waits_once_a_flush_has_been_seen_to_be_short(clock: Clock) -> None:
    known, run = FlushWait(), object()
    assert flush(known, clock, run, LONGEST_WAIT_SECONDS / 2) == 0
    assert flush(known, clock, run, LONGEST_WAIT_SECONDS / 2) == 0, "others may be about to come"
    clock.now += QUIET_SECONDS
    assert flush(known, clock, run, LONGEST_WAIT_SECONDS / 2) == LONGEST_WAIT_SECONDS
    assert flush(known, clock, run, LONGEST_WAIT_SECONDS / 2) == LONGEST_WAIT_SECONDS


def test_a_slow_disk_is_not_waited_for_until_it_is_fast_again(clock: Clock) -> None:
    known, run = FlushWait(), object()
    flush(known, clock, run, QUIET_SECONDS)
    assert flush(known, clock, run, LONGEST_WAIT_SECONDS * 2) == 0
    assert flush(known, clock, run, LONGEST_WAIT_SECONDS / 2) == 0
    assert flush(known, clock, run, LONGEST_WAIT_SECONDS / 2) == LONGEST_WAIT_SECONDS


def test_runs_that_share_flushes_leave_the_event_loop_free(clock: Clock) -> None:
    known, one, other = FlushWait(), object(), object()
    for _ in range(100):
        assert flush(known, clock, one, LONGEST_WAIT_SECONDS / 2) == 0
        assert flush(known, clock, other, LONGEST_WAIT_SECONDS / 2) == 0
    clock.now += QUIET_SECONDS
    assert flush(known, clock, other, LONGEST_WAIT_SECONDS / 2) == LONGEST_WAIT_SECONDS
    assert flush(known, clock, one, LONGEST_WAIT_SECONDS / 2) == 0
