"""Who asks, by what HTTP and TLS say of a request."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from aiohttp import web

from gradwire.server.access.gate import Gate
from gradwire.server.access.identity import ANYBODY, Identity, Role
from gradwire.server.web.sessions import Sessions, word_of
from gradwire.server.web.watched import Watched
from gradwire.wire.errors import GradwireError, PermissionDenied, Unauthenticated


def identify(request: web.BaseRequest, gate: Gate | None, sessions: Sessions | None = None) -> Identity:
    """As gRPC's callers are: by token or certificate; where there is no gate, whoever has come as far may see
    everything. Raises Unauthenticated.

    Args:
        sessions: of those who have shown a token before; they count before a certificate.
    """
    if gate is None:
        return ANYBODY
    sent = request.headers.getall("Authorization", [])
    if len(sent) > 1:
        raise Unauthenticated("there are several headers 'Authorization'; expected one")
    if sent:
        return gate.identify(sent[0])
    if sessions is not None and (word := word_of(request)) and (known := sessions.find(word)) is not None:
        return known
    certificate: dict[str, Any] = request.get_extra_info("peercert") or {}
    names = [str(name) for _, name in certificate.get("subjectAltName", ())]
    if not names:
        return gate.identify(None)
    ends = certificate.get("notAfter")
    return gate.identify(None, names, None if ends is None else float(ssl.cert_time_to_seconds(str(ends))))


class Callers:
    """Decides who may have what, and notes it. Of one server."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self.sessions = None if watched.gate is None else Sessions(watched.gate)
        """Of those who have shown a token; None: nobody is asked for one."""

    def require(self, request: web.BaseRequest, action: str, role: Role, resource: str = "") -> Identity:
        """Who asks, if that one may. Raises Unauthenticated, PermissionDenied.

        Args:
            action: as the audit log calls it.
            resource: the run, as the caller calls it; empty: none in particular.
        """
        who, reason = None, ""
        try:
            who = identify(request, self._watched.gate, self.sessions)
            require(who, role)
        except GradwireError as error:
            self._watched.registry.counters.refused(error)
            reason = error.reason
            raise
        finally:
            if self._watched.audit is not None:
                self._watched.audit.note(who, address_of(request), action, resource, reason)
        return who

    def still(self, request: web.BaseRequest, who: Identity) -> Callable[[], str]:
        """For what lasts: says, whenever it is asked, why ``who``, whom `require` has just found, may have it no more;
        empty: who asks still may."""
        gate, sessions = self._watched.gate, self.sessions
        if gate is None or sessions is None:
            return lambda: ""
        word = "" if "Authorization" in request.headers else word_of(request)
        by_session = bool(word) and sessions.find(word) is not None

        def why_over() -> str:
            if by_session and sessions.find(word) is None:
                return gate.over(who) or "the session has ended; sign in again"
            return gate.over(who)

        return why_over


def require(who: Identity, role: Role) -> None:
    """Raises PermissionDenied for whoever has less than this role."""
    if who.role < role:
        raise PermissionDenied(f"this is for the role {role.name.lower()} or more; yours is {who.role.name.lower()}")


def address_of(request: web.BaseRequest) -> str:
    """Whence it comes, as the audit log has it of gRPC's callers."""
    peer = request.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return "unknown"
    host = str(peer[0])
    return f"ipv6:[{host}]:{peer[1]}" if ":" in host else f"ipv4:{host}:{peer[1]}"


def comes_from_elsewhere(request: web.BaseRequest) -> bool:
    """Whether a browser says that a page of another site, or of another port, has made it ask. It could not read the
    answer, but use up what there is for others, or sign somebody in or out."""
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("Host"):
        return True
    return site not in ("same-origin", "none")
