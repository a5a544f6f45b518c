"""Whoever follows a series has what somebody has who asks for all of it at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.series.run_series import RunSeries
from gradwire.server.series.watch import SeriesWatch
from gradwire.server.web import curves
from gradwire.server.web.answers import to_json

Points = dict[str, dict[int, tuple[float, ...]]]


def series() -> RunSeries:
    return RunSeries(MemoryBudget(2**30), "runs/x")


def take(points: Points, news: dict[str, dict[str, Any]]) -> None:
    """As the page does it."""
    for name, part in news.items():
        kept = {step: found for step, found in points.get(name, {}).items() if step < part["from"]}
        columns = [part[key] for key in ("mean", "min", "max") if key in part]
        rows = zip(*columns, strict=True)
        points[name] = kept | dict(zip(part["step"], rows, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3000), st.booleans()), min_size=1, max_size=12))
def test_following_is_as_good_as_asking_at_the_end(moves: list[tuple[int, bool]]) -> None:
    found, points, step = series(), Points(), 0
    watch = SeriesWatch(found)
    for steps, both in moves:
        for _ in range(steps):
            step += 1
            found.add(step, "loss", 1 / step)
        if both:
            found.add(step, "accuracy", float(step))
        take(points, curves.news(watch))
    whole = Points()
    take(whole, curves.news(SeriesWatch(found)))
    assert points.keys() == whole.keys()
    for name, expected in whole.items():
        assert list(points[name]) == list(expected)
        assert [row[0] for row in points[name].values()] == [row[0] for row in expected.values()]


def test_nothing_new_is_told_as_nothing() -> None:
    found = series()
    watch = SeriesWatch(found)
    assert curves.news(watch) == {}
    found.add(1, "loss", 2.0)
    assert set(curves.news(watch)) == {"loss"}
    assert curves.news(watch) == {}
    found.add(1, "loss", 4.0)
    assert curves.news(watch)["loss"]["mean"] == [3.0]


def test_who_comes_back_gets_what_is_newer() -> None:
    found = series()
    for step in range(1, 101):
        found.add(step, "loss", float(step))
    part = curves.news(SeriesWatch(found, told_to=90))["loss"]
    assert (part["from"], part["step"][-1]) == (90, 100)


def test_spread_is_told_where_there_is_some_and_what_is_not_finite_is_null() -> None:
    found = series()
    found.add(1, "loss", float("nan"))
    found.add(2, "loss", float("inf"))
    found.add(3, "loss", 1 / 3)
    part = curves.news(SeriesWatch(found))["loss"]
    assert "min" not in part
    assert '"mean":[null,null,0.3333333]' in to_json(part)
    for step in range(1, 10_000):
        found.add(step, "accuracy", float(step % 7))
    part = curves.news(SeriesWatch(found))["accuracy"]
    assert part["width"] > 1
    assert np.nanmin(part["min"]) == 0
    assert np.nanmax(part["max"]) == 6
    assert len(part["step"]) <= 2048
