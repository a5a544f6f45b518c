"""What has changed in the series of a run since somebody looked last."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from gradwire.server.series.run_series import RunSeries
from gradwire.server.series.series_part import NOTHING, SeriesPart


class News(NamedTuple):
    """Buckets that take the place of all that begin at ``replaces_from`` or later; none: there are no others."""

    name: str
    replaces_from: int
    part: SeriesPart


class _Told(NamedTuple):
    """What whoever watches has of one series."""

    width: int
    """Steps of a bucket."""
    start: int
    """First step of the last bucket."""
    values: int
    """In that."""
    last_step: int
    """Of the newest value."""


class SeriesWatch:
    """Looks at the series of one run, for one who watches.

    Args:
        names: which ones; empty: all, those that are still to come too.
        from_step, resolution: see `RunSeries.read`.
        told_to: whoever watches has the series that there are now up to this step, from an earlier watch.
    """

    def __init__(
        self,
        series: RunSeries,
        names: Collection[str] = (),
        from_step: int = 0,
        resolution: int = 0,
        told_to: int = 0,
    ) -> None:
        self._series = series
        self._names = frozenset(names)
        self._from_step = from_step
        self._resolution = resolution
        self._told_to = told_to
        self._version = self._history = -1
        self._told: dict[str, _Told] = {}

    @property
    def has_news(self) -> bool:
        """Whether anything has changed since the last call of `news`, though perhaps nothing that is watched."""
        return self._series.version != self._version

    @property
    def last_steps(self) -> dict[str, int]:
        """Of the newest value that has been told of each series."""
        return {name: told.last_step for name, told in self._told.items()}

    def news(self) -> list[News]:
        """What has changed since the last call; at first all, but for what is known from an earlier watch. A series
        that was cut comes whole, and so does one whose buckets have become wider."""
        if not self.has_news:
            return []
        self._version = self._series.version
        known, self._told = self._told, {}
        if self._series.history == self._history:
            self._told = known
        self._history = self._series.history
        news = []
        for name in dict.fromkeys([*self._series.names(), *known]):
            if not self._names or name in self._names:
                part = self._series.read(name, self._from_step, self._resolution)
                if part is not None and len(part.count):
                    news += self._changed(name, part)
                elif name in known:  # it was cut, to nothing or to what is not watched
                    news.append(News(name, 0, NOTHING))
        self._told_to = 0  # what comes later may be of any step
        return news

    def _changed(self, name: str, part: SeriesPart) -> list[News]:
        before = self._told.get(name)
        self._told[name] = now = _Told(part.steps, int(part.first_step[-1]), int(part.count[-1]), part.last_step)
        if now == before:
            return []
        if before is None and self._told_to:
            start = self._told_to - self._told_to % part.steps
        elif before is None or before.width != part.steps:
            start = 0
        else:
            start = before.start
        news = part.since(start)
        return [News(name, start, news)] if len(news.count) else []
