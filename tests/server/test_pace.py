"""Which blocks are computed while they arrive."""

from __future__ import annotations

import pytest

from gradwire.server import pace
from gradwire.server.pace import Pace
from tests.server.clock import Clock

MIB = 2**20


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of(pace, monkeypatch)


def arrive(pace: Pace, clock: Clock, slices: int, seconds: float) -> None:
    """A block of 1 MiB slices."""
    for index in range(slices):
        clock.now += seconds / (slices - 1) if index else 0.0
        pace.note(MIB, first=index == 0, last=index == slices - 1)


def test_a_peer_of_another_host_is_never_near(clock: Clock) -> None:
    pace = Pace(local=False)
    assert not pace.near
    arrive(pace, clock, 101, 0.001)
    assert not pace.near


def test_loopback_is_near_until_it_proves_slow(clock: Clock) -> None:
    pace = Pace(local=True)
    found = [pace.near]
    for seconds in (0.1, 1.0, 0.1):  # 1 GiB/s, and 100 MiB/s: a tunnel
        arrive(pace, clock, 101, seconds)
        found.append(pace.near)
    assert found == [True, True, False, True]


def test_a_short_block_says_nothing(clock: Clock) -> None:
    pace = Pace(local=True)
    arrive(pace, clock, 4, 60.0)
    assert pace.near


def test_the_pause_before_a_block_does_not_count(clock: Clock) -> None:
    pace = Pace(local=True)
    for _ in range(3):
        clock.now += 3600.0
        arrive(pace, clock, 101, 0.1)
        assert pace.near
