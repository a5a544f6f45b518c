"""Buckets, as Prometheus wants them: a bound belongs to its bucket."""

from __future__ import annotations

import numpy as np
import pytest

from gradwire.server.metrics import histogram
from gradwire.server.metrics.histogram import Histogram


def test_a_bound_belongs_to_its_bucket_and_what_is_beyond_all_of_them_is_counted_too() -> None:
    one, all_at_once = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
    values = (0.0, 1.0, 1.5, 2.0, 3.0, 1e9)
    for value in values:
        one.observe(value)
    all_at_once.observe_all(np.array(values))
    all_at_once.observe_all(np.array([]))
    for made in (one, all_at_once):
        assert made.counts == [2, 2, 2]
        assert made.total == 7.5 + 1e9


@pytest.mark.parametrize("name", ["STEP_SECONDS", "CALL_SECONDS", "FILE_SECONDS"])
def test_bounds_ascend(name: str) -> None:
    bounds = getattr(histogram, name)
    assert list(bounds) == sorted(set(bounds))
