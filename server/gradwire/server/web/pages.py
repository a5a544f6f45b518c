"""What is answered: who may ask for what, and that the answer keeps nobody waiting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from gradwire.server.access.identity import Identity, Role
from gradwire.server.web.callers import address_of, identify, require
from gradwire.server.web.collector import Scrape
from gradwire.server.web.hosts import OwnNames
from gradwire.server.web.watched import Watched
from gradwire.wire.errors import GradwireError, PermissionDenied, Unauthenticated

log = logging.getLogger(__name__)

PIECE_BYTES = 64 * 2**10
"""Written at a time: to encrypt megabytes at once would hold up everything else."""

_HEADERS = {
    "Server": "gradwire",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_TEXT = "text/plain; charset=utf-8"


class Pages:
    """The handler of a `Door`.

    Args:
        names: by which the server may be called; None: any, since TLS has seen to it that the right one is.
        per_run: whether there are metrics of single runs.
    """

    def __init__(self, watched: Watched, names: OwnNames | None, *, per_run: bool = False) -> None:
        self._watched = watched
        self._names = names
        self._per_run = per_run
        self._rendering = asyncio.Lock()
        """Held while metrics are rendered: no more than one thread does so, however many ask."""
        self._routes: dict[str, Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]] = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1:
            return await _answer(request, 400, "expected one header 'Host'")
        if self._names is not None and not self._names.has(hosts[0]):
            return await _answer(request, 421, "this server does not go by that name; --http-name adds one")
        route = self._routes.get(request.path)
        if route is None:
            return await _answer(request, 404, f"there is nothing here; expected one of {', '.join(self._routes)}")
        if request.method not in ("GET", "HEAD"):
            return await _answer(request, 405, f"{request.path} takes GET and HEAD", Allow="GET, HEAD")
        try:
            return await route(request)
        except ConnectionError:  # the caller has gone
            raise
        except Exception:
            log.exception("unexpected error in %s", request.path)
            return await _answer(request, 500, "unexpected error; the server's log says more")

    async def _healthz(self, request: web.BaseRequest) -> web.StreamResponse:
        return await _answer(request, 200, "ok")

    async def _readyz(self, request: web.BaseRequest) -> web.StreamResponse:
        unready = self._watched.unready()
        return await _answer(request, 503 if unready else 200, unready or "ok")

    async def _metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            who = self._caller(request, "Metrics", Role.OBSERVE)
        except Unauthenticated as error:
            return await _answer(request, 401, error.message, **{"WWW-Authenticate": "Bearer"})
        except PermissionDenied as error:
            return await _answer(request, 403, error.message)
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        async with self._rendering:
            scrape = Scrape(self._watched, who if self._per_run else None)
            body = await asyncio.to_thread(encode, scrape)
        return await _answer(request, 200, body, content_type)

    def _caller(self, request: web.BaseRequest, action: str, role: Role) -> Identity:
        """Who asks, if that one may. Raises Unauthenticated, PermissionDenied."""
        who, reason = None, ""
        try:
            who = identify(request, self._watched.gate)
            require(who, role)
        except GradwireError as error:
            self._watched.registry.counters.refused(error)
            reason = error.reason
            raise
        finally:
            if self._watched.audit is not None:
                self._watched.audit.note(who, address_of(request), action, "", reason)
        return who


async def _answer(
    request: web.BaseRequest, status: int, body: str | bytes, content_type: str = _TEXT, **headers: str
) -> web.StreamResponse:
    """Writes an answer, after which the connection is over."""
    data = f"{body}\n".encode() if isinstance(body, str) else body
    response = web.StreamResponse(status=status, headers={**_HEADERS, "Content-Type": content_type, **headers})
    response.content_length = len(data)
    response.force_close()
    await response.prepare(request)
    if request.method != "HEAD":
        view = memoryview(data)
        for start in range(0, len(data), PIECE_BYTES):
            await response.write(view[start : start + PIECE_BYTES])
            await asyncio.sleep(0)  # a write that need not wait lets nobody else to work
    await response.write_eof()
    return response
