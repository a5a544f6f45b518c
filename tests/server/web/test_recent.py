"""Percentiles of the last minute, from counts by buckets."""

from __future__ import annotations

import numpy as np
import pytest

from gradwire.server.metrics.blocks import BlockCounters
from gradwire.server.metrics.histogram import Histogram
from gradwire.server.web.recent import WINDOW_SECONDS, Recent, percentiles


def test_percentiles_lie_in_the_bucket_of_the_true_ones() -> None:
    values = np.random.default_rng(0).lognormal(-6, 1.5, 5000)
    histogram = Histogram(np.geomspace(1e-5, 10, 60).tolist())
    histogram.observe_all(values)
    found = percentiles(histogram.bounds, histogram.counts)
    assert found is not None
    for name, share in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert found[name] == pytest.approx(np.percentile(values, share), rel=0.15)


def test_none_and_what_is_beyond_all_bounds() -> None:
    assert percentiles((1.0, 2.0), [0, 0, 0]) is None
    assert percentiles((1.0, 2.0), [0, 0, 5]) == {"p50": 2.0, "p90": 2.0, "p99": 2.0}
    assert percentiles((1.0, 2.0), [4, 0, 0]) == {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def test_what_was_more_than_a_minute_ago_counts_no_more() -> None:
    blocks = BlockCounters()
    recent = Recent(blocks)
    blocks.compute_seconds.observe(3.0)
    assert recent.look(0.0)["compute"] is None, "nobody knows when that was"
    blocks.compute_seconds.observe(30e-6)
    found = recent.look(1.0)
    assert found["compute"]["p50"] < 1e-3
    assert found["journal"] is None
    assert recent.look(WINDOW_SECONDS)["compute"] is not None
    assert recent.look(1.5 + WINDOW_SECONDS)["compute"] is None
