"""Token buckets that may be overdrawn, by a clock of the test's own."""

from __future__ import annotations

import pytest

from gradwire.server.access.pacing import BURST_SECONDS, DEBT_SECONDS, Pace
from gradwire.server.access.quotas import Quotas
from gradwire.wire.errors import QuotaExceeded


class Paced:
    def __init__(self, **quotas: int) -> None:
        self.now = 1000.0
        self.quotas = Quotas(**quotas)
        self.pace = Pace(lambda: self.quotas, lambda: self.now)

    def use(self, steps: int = 0, size_bytes: int = 0) -> float:
        """How long it is to be waited for."""
        self.pace.use(steps, size_bytes)
        return self.pace.wait_seconds()


def test_nothing_is_waited_for_without_rates() -> None:
    paced = Paced()
    assert paced.use(10**9, 10**12) == 0.0
    paced.pace.require(10**9, 10**12)


def test_a_second_of_the_rate_is_free_and_the_rest_is_a_debt() -> None:
    paced = Paced(steps_per_second=10)
    assert paced.use(10) == 0.0
    assert paced.use(5) == pytest.approx(0.5)
    assert paced.use(5) == pytest.approx(1.0)
    paced.now += 1.0
    assert paced.pace.wait_seconds() == 0.0
    assert paced.use(1) == pytest.approx(0.1)


def test_who_waits_saves_no_more_than_the_burst() -> None:
    paced = Paced(steps_per_second=10)
    paced.now += 1000.0
    assert paced.use(int(10 * BURST_SECONDS)) == 0.0
    assert paced.use(1) == pytest.approx(0.1)


def test_the_slower_of_both_rates_counts() -> None:
    paced = Paced(steps_per_second=10, bytes_per_second=1000)
    assert paced.use(20, 1000) == pytest.approx(1.0)
    assert paced.use(0, 3000) == pytest.approx(3.0)


def test_the_long_run_goes_at_the_rate() -> None:
    paced = Paced(steps_per_second=100)
    began = paced.now
    for _ in range(1000):
        paced.now += paced.use(7)
    assert 7000 / (paced.now - began) == pytest.approx(100, rel=0.02)


def test_two_streams_share_the_rate() -> None:
    paced = Paced(steps_per_second=100)
    ready = [paced.now, paced.now]
    for _ in range(1000):
        index = ready.index(min(ready))
        paced.now = ready[index]
        ready[index] += paced.use(7)
    assert 7000 / (paced.now - 1000.0) == pytest.approx(100, rel=0.02)


def test_a_debt_is_not_remembered_for_ever() -> None:
    paced = Paced(bytes_per_second=1)
    assert paced.use(1, 10**9) == DEBT_SECONDS


def test_streams_together_may_send_what_one_may_alone() -> None:
    paced = Paced(steps_per_second=10)
    paced.pace.require(200, 0, streams=3)
    with pytest.raises(QuotaExceeded, match=r"which 3 streams share; expected at most 200 steps"):
        paced.pace.require(201, 0, streams=3)


def test_a_rate_that_is_taken_away_is_waited_for_no_more() -> None:
    paced = Paced(steps_per_second=1)
    assert paced.use(31) == pytest.approx(30.0)
    paced.quotas = Quotas()
    assert paced.pace.wait_seconds() == 0.0


def test_a_block_that_no_wait_makes_good_is_refused() -> None:
    paced = Paced(steps_per_second=10, bytes_per_second=1000)
    paced.pace.require(600, 0)
    paced.pace.require(1, 10**9)  # a single step is never too much
    with pytest.raises(QuotaExceeded) as refusal:
        paced.pace.require(601, 0)
    assert refusal.value.metadata == {"quota": "steps_per_second", "used": "601", "limit": "10", "max_steps": "600"}
    with pytest.raises(QuotaExceeded) as refusal:
        paced.pace.require(100, 100_000)
    assert refusal.value.metadata["max_steps"] == "60"
    paced.pace.require(60, 60_000)


def test_the_level_is_what_has_been_used_lately() -> None:
    paced = Paced(steps_per_second=10)
    assert paced.pace.level("steps_per_second", 10) == 0
    paced.use(5)
    assert paced.pace.level("steps_per_second", 10) == 5
    paced.use(25)
    assert paced.pace.level("steps_per_second", 10) == 30
    paced.now += 10.0
    assert paced.pace.level("steps_per_second", 10) == 0
