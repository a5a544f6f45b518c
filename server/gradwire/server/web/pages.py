"""What is answered: who may ask for what, and that the answer keeps nobody waiting."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from aiohttp import web

from gradwire.server.web.answers import answer
from gradwire.server.web.callers import Callers
from gradwire.server.web.hosts import OwnNames
from gradwire.server.web.numbers import Numbers
from gradwire.server.web.page import Page
from gradwire.server.web.watched import Watched
from gradwire.wire.layout import TENANT_NAME

log = logging.getLogger(__name__)

Answering = Callable[..., Coroutine[Any, Any, web.StreamResponse]]
"""Takes the request and, where the path has one, a name."""

_RUN = rf"(?:tenants/{TENANT_NAME}/)?runs/[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}"
_READ = ("GET", "HEAD")


class Pages:
    """The handler of a `Door`.

    Args:
        names: by which the server may be called; None: any, since TLS has seen to it that the right one is.
        per_run: whether there are metrics of single runs.
    """

    def __init__(self, watched: Watched, names: OwnNames | None, *, per_run: bool = False) -> None:
        self._names = names
        callers = Callers(watched)
        numbers = Numbers(watched, callers, per_run=per_run)
        self.page = page = Page(watched, callers)
        self._routes: dict[str, tuple[tuple[str, ...], Answering]] = {
            "/": (_READ, page.of_all),
            "/api/runs": (_READ, page.list_of_runs),
            "/stream": (_READ, page.stream),
            "/metrics": (_READ, numbers.metrics),
            "/healthz": (_READ, numbers.healthz),
            "/readyz": (_READ, numbers.readyz),
            "/login": (("POST",), page.login),
            "/logout": (("POST",), page.logout),
        }
        self._routes_of: list[tuple[re.Pattern[str], Answering]] = [
            (re.compile(rf"/({_RUN})", re.ASCII), page.of_one),
            (re.compile(rf"/api/({_RUN})", re.ASCII), page.facts),
            (re.compile(rf"/api/({_RUN})/series", re.ASCII), page.series),
            (re.compile(r"/static/([A-Za-z.-]+)", re.ASCII), page.static),
        ]

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1:
            return await answer(request, 400, "expected one header 'Host'")
        if self._names is not None and not self._names.has(hosts[0]):
            return await answer(request, 421, "this server does not go by that name; --http-name adds one")
        methods, route = self._routes.get(request.path) or self._of_one(request.path)
        if route is None:
            known = ", ".join([*self._routes, "/runs/NAME", "/api/runs/NAME", "/api/runs/NAME/series"])
            return await answer(request, 404, f"there is nothing here; expected one of {known}")
        if request.method not in methods:
            return await answer(request, 405, f"{request.path} takes {' and '.join(methods)}", Allow=", ".join(methods))
        try:
            return await route(request)
        except ConnectionError:  # the caller has gone
            raise
        except Exception:
            log.exception("unexpected error in %s", request.path)
            return await answer(request, 500, "unexpected error; the server's log says more")

    def _of_one(self, path: str) -> tuple[tuple[str, ...], Answering | None]:
        for pattern, route in self._routes_of:
            if (found := pattern.fullmatch(path)) is not None:
                return _READ, partial(route, name=found[1])
        return (), None
