"""What programs ask: metrics, and whether the server lives and serves."""

from __future__ import annotations

import asyncio

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from gradwire.server.access.identity import Role
from gradwire.server.web.answers import answer, refusal
from gradwire.server.web.callers import Callers, comes_from_elsewhere
from gradwire.server.web.collector import Scrape
from gradwire.server.web.watched import Watched
from gradwire.wire.errors import GradwireError, PermissionDenied


class Numbers:
    """Of one server.

    Args:
        per_run: whether there are metrics of single runs.
    """

    def __init__(self, watched: Watched, callers: Callers, *, per_run: bool) -> None:
        self._watched = watched
        self._callers = callers
        self._per_run = per_run
        self._rendering = asyncio.Lock()
        """Held while metrics are rendered: no more than one thread does so, however many ask."""

    async def healthz(self, request: web.BaseRequest) -> web.StreamResponse:
        return await answer(request, 200, "ok")

    async def readyz(self, request: web.BaseRequest) -> web.StreamResponse:
        unready = self._watched.unready()
        return await answer(request, 503 if unready else 200, unready or "ok")

    async def metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            # To follow a link is somebody's own wish, and Prometheus has one to each of its targets.
            if comes_from_elsewhere(request) and request.headers.get("Sec-Fetch-Dest") != "document":
                raise PermissionDenied("a page from elsewhere asks; expected one of this server")
            who = self._callers.require(request, "Metrics", Role.OBSERVE)
        except GradwireError as error:
            return await refusal(request, error)
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        async with self._rendering:
            scrape = Scrape(self._watched, who if self._per_run else None)
            body = await asyncio.to_thread(encode, scrape)
        return await answer(request, 200, body, content_type)
