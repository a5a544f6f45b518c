"""Who watches series is told what changes, and no more."""

from __future__ import annotations

from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.series.run_series import RunSeries
from gradwire.server.series.watch import News, SeriesWatch
from gradwire.wire.series import MAX_BUCKETS


def watched() -> RunSeries:
    series = RunSeries(MemoryBudget(2**30), "runs/a")
    for step in range(1, 5):
        series.add(step, "loss", float(step))
    return series


def told(news: list[News]) -> list[tuple[str, int, list[float]]]:
    return [(each.name, each.replaces_from, each.part.last.tolist()) for each in news]


def test_at_first_all_and_then_what_has_changed() -> None:
    series = watched()
    watch = SeriesWatch(series)
    assert told(watch.news()) == [("loss", 0, [1, 2, 3, 4])]
    assert not watch.has_news
    assert watch.news() == []
    series.add(4, "loss", 5.0)
    series.add(6, "loss", 6.0)
    series.add(6, "other", 1.0)
    assert told(watch.news()) == [("loss", 4, [5, 6]), ("other", 0, [1])]


def test_only_what_is_asked_for() -> None:
    series = watched()
    watch = SeriesWatch(series, ["loss"], from_step=3, resolution=1)
    assert told(watch.news()) == [("loss", 0, [4])]
    series.add(5, "other", 1.0)
    assert watch.has_news
    assert watch.news() == []


def test_who_has_watched_before_is_told_what_came_since() -> None:
    series = watched()
    series.add(4, "late", 1.0)
    watch = SeriesWatch(series, told_to=3)
    assert told(watch.news()) == [("loss", 3, [3, 4]), ("late", 3, [1])]
    assert watch.last_steps == {"loss": 4, "late": 4}
    series.add(5, "loss", 5.0)
    series.add(2, "new", 7.0)
    assert told(watch.news()) == [("loss", 4, [4, 5]), ("new", 0, [7])], "what is new may begin at any step"
    series.add(6, "loss", 6.0)
    assert told(SeriesWatch(series, told_to=6).news()) == [("loss", 6, [6])], "the others have nothing that is newer"


def test_wider_buckets_come_whole() -> None:
    series = watched()
    watch = SeriesWatch(series)
    watch.news()
    for step in range(5, MAX_BUCKETS + 2):
        series.add(step, "loss", 0.0)
    (news,) = watch.news()
    assert (news.replaces_from, news.part.steps, news.part.count.sum()) == (0, 2, MAX_BUCKETS + 1)


def test_what_is_cut_comes_whole_and_what_is_gone_is_said_once() -> None:
    series = watched()
    series.add(4, "late", 1.0)
    watch = SeriesWatch(series)
    watch.news()
    series.cut(2)
    assert told(watch.news()) == [("loss", 0, [1, 2]), ("late", 0, [])]
    series.add(3, "loss", 9.0)
    assert told(watch.news()) == [("loss", 2, [2, 9])]


def test_what_is_cut_to_before_what_is_watched_is_said_once() -> None:
    series = watched()
    watch = SeriesWatch(series, from_step=3)
    assert told(watch.news()) == [("loss", 0, [3, 4])]
    series.cut(2)
    assert told(watch.news()) == [("loss", 0, [])]
    series.cut(1)
    assert watch.news() == []
