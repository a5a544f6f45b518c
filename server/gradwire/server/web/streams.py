"""Server-sent events: a bounded number of watchers, all told at one pace, each only as long as it may watch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gradwire.server.access.identity import Identity
from gradwire.server.metrics.traffic import RECEIVED, SENT
from gradwire.server.runs.registry import Registry
from gradwire.server.web.answers import HEADERS, PIECE_BYTES, answer, to_json, write
from gradwire.server.web.door import without_end
from gradwire.server.web.following import FollowsAll, FollowsSome, event
from gradwire.server.web.listing import Listing
from gradwire.server.web.recent import Recent
from gradwire.server.web.watched import Watched

log = logging.getLogger(__name__)

MAX_STREAMS = 32
"""Of all connections, no more than half are those that stay."""

MAX_STREAMS_OF_ONE = 16
"""Of one token, or where nobody is asked, of one address."""

TICK_SECONDS = 1.0

_HEARTBEAT_SECONDS = 5.0
_LAST_WORDS_SECONDS = 1.0
"""What a watcher that may watch no more gets to read why."""

_SHARE = 0.1
"""Of the time, which looking at very many runs may take at most."""


@dataclass(eq=False)
class _Watcher:
    """One stream."""

    request: web.BaseRequest
    who: Identity
    caller: str
    still: Callable[[], str]
    follows: FollowsAll | FollowsSome
    task: asyncio.Task[Any]
    over: str = ""
    """Why it is; empty: it is not."""
    ending_since: float = 0.0
    writing_since: float = 0.0
    """When the piece that is being written was begun; 0: nothing is."""
    turn: asyncio.Event = field(default_factory=asyncio.Event)


class Streams:
    """Of one server. On the event loop."""

    def __init__(self, watched: Watched, listing: Listing) -> None:
        self._watched = watched
        self._counters = watched.registry.counters
        self._listing = listing
        self._watchers: set[_Watcher] = set()
        self._pacing: list[asyncio.Task[None]] = []
        """What goes on as long as anybody watches."""
        self._recent = Recent(self._counters.blocks)
        self._server = b""
        """The event that says how the server is."""

    def __len__(self) -> int:
        return len(self._watchers)

    async def serve(
        self,
        request: web.BaseRequest,
        who: Identity,
        caller: str,
        still: Callable[[], str],
        follows: FollowsAll | FollowsSome,
    ) -> web.StreamResponse:
        """Tells a watcher what happens, until it leaves or may not watch any more.

        Args:
            caller: whose streams are counted together.
            still: see `Callers.still`.
        """
        counts = Counter(watcher.caller for watcher in self._watchers)
        if len(self._watchers) >= MAX_STREAMS or counts[caller] >= MAX_STREAMS_OF_ONE:
            most = f"{MAX_STREAMS_OF_ONE} of yours" if counts[caller] >= MAX_STREAMS_OF_ONE else f"{MAX_STREAMS}"
            self._counters.page_streams_refused += 1
            why = f"as many pages are open as are told what happens, {most}; close one, or come again"
            return await answer(request, 503, why, **{"Retry-After": "5"})
        if unready := self._watched.unready():
            return await answer(request, 503, f"the server is {unready}; come again", **{"Retry-After": "1"})
        task = asyncio.current_task()
        assert task is not None
        watcher = _Watcher(request, who, caller, still, follows, task)
        self._watchers.add(watcher)
        self._counters.page_streams = len(self._watchers)
        if len(self._watchers) == 1:
            loop = asyncio.get_running_loop()
            self._pacing = [loop.create_task(work()) for work in (self._look, self._attend_to_all)]
        without_end(request)
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream; charset=utf-8"})
        response.force_close()
        try:
            await response.prepare(request)
            if request.method != "HEAD":
                await self._tell(response, watcher)
            with suppress(ConnectionError):
                await response.write_eof()
        except asyncio.CancelledError:
            if not watcher.over:
                raise
        finally:
            self._watchers.discard(watcher)
            self._counters.page_streams = len(self._watchers)
            if not self._watchers:
                for pacing in self._pacing:
                    pacing.cancel()
        return response

    async def _tell(self, response: web.StreamResponse, watcher: _Watcher) -> None:
        who, registry = watcher.who, self._watched.registry
        hello = {"instance": registry.server_instance, "id": who.id, "tenant": who.tenant}
        await write(response, event("hello", to_json({**hello, "role": who.role.name.lower()})))
        await self._listing.look()
        spoken, server = time.monotonic(), b""
        while not watcher.over:
            news = await watcher.follows.news(self._listing.now)  # not kept: whoever drops a long list last frees it
            if server != self._server:
                news, server = news + self._server, self._server
            if news or time.monotonic() - spoken >= _HEARTBEAT_SECONDS:
                await self._write(response, watcher, news or b": still here\n\n")
                spoken = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT_SECONDS):
                    await watcher.turn.wait()
            watcher.turn.clear()
        await write(response, event("end", to_json({"why": watcher.over})))

    @staticmethod
    async def _write(response: web.StreamResponse, watcher: _Watcher, data: bytes) -> None:
        for start in range(0, len(data), PIECE_BYTES):  # whoever reads slowly reads
            watcher.writing_since = time.monotonic()
            await write(response, data[start : start + PIECE_BYTES])
        watcher.writing_since = 0.0

    async def _look(self) -> None:
        """Looks once for all; the longer that takes, the less often."""
        failing = False
        while True:
            began = time.monotonic()
            try:
                await self._listing.look()
                sums = await asyncio.to_thread(self._byte_sums)
                self._server = event("server", to_json({**self._status(began), "bytes": sums}))
                failing = False
            except Exception:
                if not failing:
                    log.exception("the runs cannot be looked at; tried again in %g s", TICK_SECONDS)
                failing = True
            for watcher in self._watchers:
                watcher.turn.set()
            await asyncio.sleep(max(TICK_SECONDS, (time.monotonic() - began) / _SHARE))

    async def _attend_to_all(self) -> None:
        """Ends those who may not watch any more, and those who do not read."""
        while True:
            for watcher in list(self._watchers):
                self._attend(watcher, time.monotonic())
            await asyncio.sleep(TICK_SECONDS)

    def _attend(self, watcher: _Watcher, now: float) -> None:
        transport = watcher.request.transport
        if transport is None or transport.is_closing():
            watcher.over = watcher.over or "gone"
            watcher.task.cancel()
            return
        if not watcher.over:
            if why := self._why_over(watcher, now):
                watcher.over, watcher.ending_since = why, now
                watcher.turn.set()
        elif now - watcher.ending_since >= _LAST_WORDS_SECONDS:
            watcher.task.cancel()

    def _why_over(self, watcher: _Watcher, now: float) -> str:
        main = watcher.follows.main
        if why := watcher.still():
            return why
        if self._watched.unready() == "draining":
            return "the server is about to stop"
        patience_seconds = self._watched.registry.config.stall_timeout_seconds
        if watcher.writing_since and now - watcher.writing_since > patience_seconds:
            return f"nothing has been read for {patience_seconds:g} s"
        if main and main not in self._watched.registry:
            return f"{watcher.who.outside(main)} has been deleted"
        return ""

    def _byte_sums(self) -> dict[str, int]:
        """By direction."""
        sums = {RECEIVED: 0, SENT: 0}
        for (direction, _, _), count in self._counters.traffic.counts().items():
            sums[direction] += count
        return sums

    def _status(self, now: float) -> dict[str, Any]:
        registry: Registry = self._watched.registry
        return {
            "seconds": self._recent.look(now),
            "memory_bytes": registry.budget.used_bytes,
            "memory_limit_bytes": registry.budget.limit_bytes,
            "loop_lag_seconds": float(f"{self._watched.loop_lag_seconds():.2g}"),
        }
