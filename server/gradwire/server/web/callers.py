"""Who asks, by what HTTP and TLS say of a request."""

from __future__ import annotations

import ssl
from typing import Any

from aiohttp import web

from gradwire.server.access.gate import Gate
from gradwire.server.access.identity import ANYBODY, Identity, Role
from gradwire.wire.errors import PermissionDenied, Unauthenticated


def identify(request: web.BaseRequest, gate: Gate | None) -> Identity:
    """As gRPC's callers are: by token or certificate; where there is no gate, whoever has come as far may see
    everything. Raises Unauthenticated."""
    if gate is None:
        return ANYBODY
    sent = request.headers.getall("Authorization", [])
    if len(sent) > 1:
        raise Unauthenticated("there are several headers 'Authorization'; expected one")
    if sent:
        return gate.identify(sent[0])
    certificate: dict[str, Any] = request.get_extra_info("peercert") or {}
    names = [str(name) for _, name in certificate.get("subjectAltName", ())]
    if not names:
        return gate.identify(None)
    ends = certificate.get("notAfter")
    return gate.identify(None, names, None if ends is None else float(ssl.cert_time_to_seconds(str(ends))))


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
