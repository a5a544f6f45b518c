"""The page: its files, what it shows as data, and the way in for those who have a token."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs

from aiohttp import web

from gradwire.server.access.identity import ANYBODY, Identity, Role
from gradwire.server.engine.run import Run
from gradwire.server.series.watch import SeriesWatch
from gradwire.server.web import assets, curves, details, plain_text
from gradwire.server.web.answers import JSON, TEXT, answer, refusal, to_json
from gradwire.server.web.aside import Aside
from gradwire.server.web.callers import Callers, address_of, comes_from_elsewhere
from gradwire.server.web.following import MAX_RUNS, FollowsAll, FollowsSome
from gradwire.server.web.listing import Listing, Rows, facts_of
from gradwire.server.web.sessions import cookie, word_of
from gradwire.server.web.streams import Streams
from gradwire.server.web.watched import Watched
from gradwire.wire.errors import GradwireError, PermissionDenied, ProtocolViolation, Unauthenticated

_MAX_FORM_BYTES = 4096
_MAX_ID_CHARACTERS = 2048
_MAX_STEP_DIGITS = 19


class Page:
    """Of one server."""

    def __init__(self, watched: Watched, callers: Callers) -> None:
        self._watched = watched
        self._callers = callers
        self._assets = assets.load()
        self._aside = Aside()
        self._listing = Listing(watched.registry, self._aside)
        self.streams = Streams(watched, self._listing)

    # --- for people --------------------------------------------------------------------------------------------------

    async def of_all(self, request: web.BaseRequest) -> web.StreamResponse:
        """The list; HTML knows nothing yet, and asks for what it shows with what lets it in."""
        if _wants_html(request):
            return await self._file(request, "index.html")
        try:
            who = self._caller(request, "ListRuns")
        except GradwireError as error:
            return await refusal(request, error)
        text = await self._aside.run(_encoded, plain_text.of_all, await self._listing.look(), who)
        return await answer(request, 200, text)

    async def of_one(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """One run."""
        if _wants_html(request):
            return await self._file(request, "index.html")
        return await self._of(request, name, plain_text.of_one, TEXT)

    async def static(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        return await self._file(request, name)

    async def _file(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        found = self._assets.get(name)
        if found is None:
            return await answer(request, 404, "there is no such file")
        fresh = {"Cache-Control": "no-cache", "ETag": found.tag}  # asked for again each time, and sent when it changed
        if request.headers.get("If-None-Match") == found.tag:
            return await answer(request, 304, b"", found.content_type, **fresh)
        return await answer(request, 200, found.data, found.content_type, **fresh)

    # --- for programs ------------------------------------------------------------------------------------------------

    async def list_of_runs(self, request: web.BaseRequest) -> web.StreamResponse:
        """All runs, as JSON."""
        try:
            who = self._caller(request, "ListRuns")
        except GradwireError as error:
            return await refusal(request, error)
        found = await self._aside.run(_list, await self._listing.look(), who)
        return await answer(request, 200, found, JSON)

    async def facts(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """One run, as JSON."""
        return await self._of(request, name, _as_json, JSON)

    async def _of(
        self, request: web.BaseRequest, name: str, render: Callable[..., str], content_type: str
    ) -> web.StreamResponse:
        who = None
        try:
            who = self._caller(request, "GetRun", name)
            run = self._run(who, name)
        except GradwireError as error:
            return await refusal(request, error, who)
        facts = await self._aside.run(facts_of, run)
        now = details.settings(self._watched.registry, run) | details.workers(run) | details.events(run)
        found = (who.outside(run.spec.name), facts, details.about(run), now)
        return await answer(request, 200, await self._aside.run(_encoded, render, *found, who=who), content_type)

    async def series(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """The curves of a run, as JSON: all, or from a step on."""
        who = None
        try:
            who = self._caller(request, "GetSeries", name)
            run = self._run(who, name)
            from_step = _number(request, "from")
        except GradwireError as error:
            return await refusal(request, error, who)
        found = await self._aside.run(lambda: to_json(curves.news(SeriesWatch(run.series, told_to=from_step))).encode())
        return await answer(request, 200, found, JSON)

    async def stream(self, request: web.BaseRequest) -> web.StreamResponse:
        """What happens, as server-sent events: of the runs that are named, of which the first must be there, or of
        all."""
        registry, names = self._watched.registry, request.rel_url.query.getall("run", [])
        last_id = request.headers.get("Last-Event-ID", "")[:_MAX_ID_CHARACTERS]
        who = None
        try:
            who = self._caller(request, "Watch", names[0] if names else "")
            if len(names) > MAX_RUNS:
                raise ProtocolViolation(f"{len(names)} runs are named; expected at most {MAX_RUNS}")
            if names:
                self._run(who, names[0])
        except GradwireError as error:
            return await refusal(request, error, who)
        follows = (
            FollowsSome(registry, self._aside, who, names, last_id)
            if names
            else FollowsAll(self._aside, who, registry.server_instance, last_id)
        )
        caller = who.id or address_of(request).rpartition(":")[0]
        return await self.streams.serve(request, who, caller, self._callers.still(request, who), follows)

    # --- who ---------------------------------------------------------------------------------------------------------

    async def login(self, request: web.BaseRequest) -> web.StreamResponse:
        """Takes a token once, and gives a session for it."""
        sessions, gate = self._callers.sessions, self._watched.gate
        if sessions is None or gate is None:
            return await answer(request, 404, "this server asks nobody for a token")
        if comes_from_elsewhere(request):
            return await answer(request, 403, "a page from elsewhere cannot sign anybody in")
        length = request.content_length
        if length is None or length > _MAX_FORM_BYTES:
            return await answer(request, 413, f"expected a form of at most {_MAX_FORM_BYTES} bytes")
        form = parse_qs((await request.read()).decode(errors="replace"))
        token = form.get("token", [""])[0].strip()
        who, reason = None, ""
        try:
            if not token:
                raise Unauthenticated("expected a token, as gradwire tokens create has printed it")
            who = gate.identify(f"Bearer {token}")
            if who.role < Role.READ:
                raise PermissionDenied(f"the page is for the role read or more; yours is {who.role.name.lower()}")
        except GradwireError as error:
            reason = error.reason
            self._watched.registry.counters.refused(error)
            return await refusal(request, error)
        finally:
            if self._watched.audit is not None:
                self._watched.audit.note(who, address_of(request), "Login", "", reason)
        return await answer(request, 204, b"", **{"Set-Cookie": cookie(request, sessions.begin(who))})

    async def logout(self, request: web.BaseRequest) -> web.StreamResponse:
        """Forgets the session."""
        if comes_from_elsewhere(request):
            return await answer(request, 403, "a page from elsewhere cannot sign anybody out")
        if self._callers.sessions is not None:
            self._callers.sessions.end(word_of(request))
        return await answer(request, 204, b"", **{"Set-Cookie": cookie(request, "")})

    def _caller(self, request: web.BaseRequest, action: str, resource: str = "") -> Identity:
        """Raises Unauthenticated, PermissionDenied, Starting."""
        if comes_from_elsewhere(request):
            raise PermissionDenied("a page from elsewhere asks; expected one of this server")
        who = self._callers.require(request, action, Role.READ, resource)
        self._watched.registry.require_ready()
        return who

    def _run(self, who: Identity, name: str) -> Run:
        """Raises RunNotFound, RunDamaged, PermissionDenied."""
        return self._watched.registry.get(who.inside(name))


def _list(rows: Rows, who: Identity) -> bytes:
    shown = [row.shown(who.outside(row.name)).encode() for row in rows.visible(who)]
    return b"[" + b",\n".join(shown) + b"]\n"


def _encoded(render: Callable[..., str], *arguments: object, who: Identity = ANYBODY) -> bytes:
    """A body of one line or more; a large one takes a while. Args: who: in whose words runs are named."""
    return f"{who.text(render(*arguments))}\n".encode()


def _wants_html(request: web.BaseRequest) -> bool:
    return "text/html" in request.headers.get("Accept", "")


def _as_json(name: str, facts: object, about: dict[str, object], now: dict[str, object]) -> str:
    return to_json({"name": name, "facts": facts, **about, **now})


def _number(request: web.BaseRequest, name: str) -> int:
    """A number in the query; 0 where it is not there. Raises ProtocolViolation."""
    text = request.rel_url.query.get(name, "0")
    if not (text.isascii() and text.isdecimal() and len(text) < _MAX_STEP_DIGITS):
        raise ProtocolViolation(f"{name} is {text[:40]!r}; expected a number of steps, 0 or more")
    return int(text)
