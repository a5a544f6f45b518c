"""Buckets, as Prometheus wants them: a bound belongs to its bucket."""

from __future__ import annotations

import pytest

from gradwire.server.metrics import histogram
from gradwire.server.metrics.histogram import Histogram


def test_a_bound_belongs_to_its_bucket_and_what_is_beyond_all_of_them_is_counted_too() -> None:
    made = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 3.0, 1e9):
        made.observe(value)
    assert made.counts == [2, 2, 2]
    assert made.total == 7.5 + 1e9


@pytest.mark.parametrize("name", ["STEP_SECONDS", "CALL_SECONDS", "FILE_SECONDS"])
def test_bounds_ascend(name: str) -> None:
    bounds = getattr(histogram, name)
    assert list(bounds) == sorted(set(bounds))
