"""What one watcher is told, moment after moment: of a few runs all that the page shows, or of all runs a line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradwire.server.access.identity import Identity
from gradwire.server.engine.run import Run
from gradwire.server.runs.registry import Registry
from gradwire.server.series.watch import SeriesWatch
from gradwire.server.web import curves, details
from gradwire.server.web.answers import to_json
from gradwire.server.web.aside import Aside
from gradwire.server.web.listing import Rows
from gradwire.wire.errors import GradwireError
from gradwire.wire.series import is_own

MAX_RUNS = 8
"""Whose curves one watcher follows."""


def event(kind: str, data: str, identifier: str = "") -> bytes:
    """One server-sent event; ``data`` is JSON, which has no line ends."""
    mark = f"id: {identifier}\n" if identifier else ""
    return f"{mark}event: {kind}\ndata: {data}\n\n".encode()


class FollowsAll:
    """The list.

    Args:
        instance: of the server; what was seen of another one counts for nothing.
        last_id: what the watcher has seen, if it has; any text.
    """

    main = ""

    def __init__(self, aside: Aside, who: Identity, instance: str, last_id: str) -> None:
        self._aside = aside
        self._who = who
        self._instance = instance
        seen, _, version = last_id.partition(".")
        self._version = int(version) if seen == instance and version.isascii() and version.isdecimal() else 0

    async def news(self, rows: Rows) -> bytes:
        """Events; empty: nothing is new."""
        version, self._version = self._version, rows.version
        return await self._aside.run(self._event, rows, version if version <= rows.version else 0)

    def _event(self, rows: Rows, version: int) -> bytes:
        parts = [event("runs", text) for text in rows.news(self._who, version)]
        return b"".join([*parts, event("seen", "{}", f"{self._instance}.{rows.version}")]) if parts else b""


@dataclass
class _Seen:
    """What a watcher has seen of one run."""

    uid: str = ""
    rewritten: int = 0
    from_step: int = 0
    """It has the curves up to here, from an earlier connection."""
    series: int = 0
    """So many of them."""
    watch: SeriesWatch | None = None
    texts: dict[str, str] = field(default_factory=dict)
    """By kind of event."""

    @property
    def mark(self) -> str:
        """All that has to be known of it to go on in another connection."""
        return f"{self.uid}.{self.rewritten}.{self.from_step}.{self.series}"


class FollowsSome:
    """A few runs; the first one with all that there is to know, the others with their curves. Of one that is not there,
    or that the caller may not see, it is told why.

    Args:
        names: as the caller calls them; the first one is that of a run which it may see.
    """

    def __init__(self, registry: Registry, aside: Aside, who: Identity, names: Sequence[str], last_id: str) -> None:
        self._aside = aside
        self._registry = registry
        self._who = who
        self._names = list(dict.fromkeys(names))
        self.main = who.inside(self._names[0])
        """Inside the server. Watching ends when this one is no more."""
        self._seen = dict(_resumed(last_id, registry.server_instance, self._names))

    async def news(self, rows: Rows) -> bytes:
        """Events; empty: nothing is new."""
        parts = [part for name in self._names for part in await self._of(name, rows)]
        if not parts:
            return b""
        marks = [seen.mark for seen in self._seen.values()]
        return b"".join([*parts, event("seen", "{}", "/".join([self._registry.server_instance, *marks]))])

    async def _of(self, name: str, rows: Rows) -> list[bytes]:
        seen = self._seen.setdefault(name, _Seen())
        try:
            inside = self._who.inside(name)
            run = self._registry.get(inside)
        except GradwireError as error:
            return self._changed(seen, "missing", to_json({"name": name, "why": self._who.text(error.message)}))
        found: list[bytes] = []
        if run.uid != seen.uid or run.events.rewritten != seen.rewritten:  # curves of another run, or that go back
            seen = self._seen[name] = _Seen(run.uid, run.events.rewritten)
            found += [event("whole", to_json({"name": name}))]
        seen.texts.pop("missing", None)
        if inside == self.main:
            parts = {
                "settings": details.settings(self._registry, run),
                "workers": details.workers(run),
                "events": details.events(run),
            }
            if "about" not in seen.texts:  # which never changes, and is the longest
                parts = {"about": details.about(run), **parts}
            texts = await self._aside.run(lambda: {kind: to_json(part) for kind, part in parts.items()})
            for kind, text in texts.items():
                found += self._changed(seen, kind, self._who.text(text))
        if inside in rows.rows:
            found += self._changed(seen, "row", rows.rows[inside].shown(name))
        found += await self._aside.run(_curves, run, seen, name)
        return found

    @staticmethod
    def _changed(seen: _Seen, kind: str, text: str) -> list[bytes]:
        if seen.texts.get(kind) == text:
            return []
        seen.texts[kind] = text
        return [event(kind, text)]


def _curves(run: Run, seen: _Seen, name: str) -> list[bytes]:
    if seen.watch is None:
        resumes = len(run.series.names()) == seen.series  # else one is new, and may begin at any step
        seen.watch = SeriesWatch(run.series, told_to=seen.from_step if resumes else 0)
    news: Mapping[str, Any] = curves.news(seen.watch)
    last_steps = seen.watch.last_steps
    # What workers log may be of any step since their last value, the server's own only of the newest.
    logged = [step for name, step in last_steps.items() if not is_own(name)]
    seen.from_step = min(logged) if logged else max(last_steps.values(), default=0)
    seen.series = len(last_steps)
    return [event("series", to_json({"name": name, "series": news}))] if news else []


def _resumed(last_id: str, instance: str, names: Sequence[str]) -> Iterator[tuple[str, _Seen]]:
    """What `FollowsSome` has told before, by what it has called it; nothing for what it has not."""
    before, *marks = last_id.split("/")
    if before != instance or len(marks) != len(names):
        return
    for name, mark in zip(names, marks, strict=True):
        uid, _, rest = mark.partition(".")
        numbers = rest.split(".")
        if len(numbers) == 3 and all(part.isascii() and part.isdecimal() and len(part) < 20 for part in numbers):
            rewritten, from_step, series = map(int, numbers)
            yield name, _Seen(uid, rewritten, from_step, series)
