"""What has changed in the series of a run since somebody looked last."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from gradwire.server.series.run_series import NOTHING, RunSeries, SeriesPart


class News(NamedTuple):
    """Buckets that take the place of all that begin at ``replaces_from`` or later; none: there are no others."""

    name: str
    replaces_from: int
    part: SeriesPart


class SeriesWatch:
    """Looks at the series of one run, for one who watches.

    Args:
        names: which ones; empty: all, those that are still to come too.
        from_step, resolution: see `RunSeries.read`.
    """

    def __init__(self, series: RunSeries, names: Collection[str] = (), from_step: int = 0, resolution: int = 0) -> None:
        self._series = series
        self._names = frozenset(names)
        self._from_step = from_step
        self._resolution = resolution
        self._version = self._history = -1
        self._seen: dict[str, tuple[int, int, int]] = {}
        """Of each series: the width of its buckets, where the last one begins, and how many values it has."""

    @property
    def has_news(self) -> bool:
        """Whether anything has changed since the last call of `news`, though perhaps nothing that is watched."""
        return self._series.version != self._version

    def news(self) -> list[News]:
        """What has changed since the last call; at first all. A series that was cut comes whole, and so does one whose
        buckets have become wider."""
        if not self.has_news:
            return []
        self._version = self._series.version
        known, self._seen = self._seen, {}
        if self._series.history == self._history:
            self._seen = known
        self._history = self._series.history
        news = []
        for name in dict.fromkeys([*self._series.names(), *known]):
            if not self._names or name in self._names:
                part = self._series.read(name, self._from_step, self._resolution)
                if part is not None and len(part.count):
                    news += self._changed(name, part)
                elif name in known:  # it was cut, to nothing or to what is not watched
                    news.append(News(name, 0, NOTHING))
        return news

    def _changed(self, name: str, part: SeriesPart) -> list[News]:
        width, start, count = self._seen.get(name, (0, 0, 0))
        self._seen[name] = now = part.steps, int(part.first_step[-1]), int(part.count[-1])
        if now == (width, start, count):
            return []
        if width != part.steps:
            return [News(name, 0, part)]
        return [News(name, start, part.since(start))]
