"""Which blocks are computed while they arrive."""

from __future__ import annotations

import pytest

from gradwire.server.training import arrival_speed
from gradwire.server.training.arrival_speed import ArrivalSpeed
from tests.server.clock import Clock

MIB = 2**20


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock.of(arrival_speed, monkeypatch)


def arrive(speed: ArrivalSpeed, clock: Clock, slices: int, seconds: float) -> None:
    """A block of 1 MiB slices."""
    for index in range(slices):
        clock.now += seconds / (slices - 1) if index else 0.0
        speed.note(MIB, first=index == 0, last=index == slices - 1)


def test_a_peer_of_another_host_is_never_near(clock: Clock) -> None:
    speed = ArrivalSpeed(local=False)
    assert not speed.near
    arrive(speed, clock, 101, 0.001)
    assert not speed.near


def test_loopback_is_near_until_it_proves_slow(clock: Clock) -> None:
    speed = ArrivalSpeed(local=True)
    found = [speed.near]
    for seconds in (0.1, 1.0, 0.1):  # 1 GiB/s, and 100 MiB/s: a tunnel
        arrive(speed, clock, 101, seconds)
        found.append(speed.near)
    assert found == [True, True, False, True]


def test_a_short_block_says_nothing(clock: Clock) -> None:
    speed = ArrivalSpeed(local=True)
    arrive(speed, clock, 4, 60.0)
    assert speed.near


def test_the_pause_before_a_block_does_not_count(clock: Clock) -> None:
    speed = ArrivalSpeed(local=True)
    for _ in range(3):
        clock.now += 3600.0
        arrive(speed, clock, 101, 0.1)
        assert speed.near
