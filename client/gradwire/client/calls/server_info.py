"""What a server says of its caller, and of itself."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime

from gradwire.client.transport.link import Link
from gradwire.client.transport.retry import RetryPolicy, retrying
from gradwire.v1 import service_pb2


@dataclass(frozen=True)
class Quota:
    """How much of something the tenant holds, and may."""

    used: int
    limit: int


@dataclass(frozen=True)
class WhoAmI:
    """For whom a server takes its caller."""

    tenant: str
    """Whose runs its names of runs stand for; ``"default"`` on a server that asks nobody who comes."""
    role: str
    """``"observe"``, ``"read"``, ``"contribute"``, ``"train"`` or ``"admin"``; each may do what those before it may."""
    id: str
    """Of the token or certificate, as the server's access file calls it; empty: nobody was asked."""
    expires: datetime | None
    """When that ends, in UTC; None: it does not."""
    runs: tuple[str, ...]
    """Patterns of shell style, of names of runs; none: all."""
    workers: tuple[str, ...]
    """As ``runs``, of worker ids."""
    quotas: dict[str, Quota]
    """Of ``"runs"``, ``"memory"`` in bytes and ``"streams"``; only those that have a bound."""


@dataclass(frozen=True)
class Recovery:
    """How far a server is, or was at its start, with bringing its runs back."""

    runs: int
    """That are back, or have been found damaged."""
    total_runs: int
    snapshot_bytes: int
    """That have been read."""
    total_snapshot_bytes: int
    run: str
    """Resource name of the run that is being brought back, with its tenant; empty: none is."""
    blocks: int
    """Of its journal that have been applied once more."""
    total_blocks: int
    """About; 0: not known."""
    seconds: float
    """For how long it has been going on, or did."""
    text: str
    """All of this in words."""


@dataclass(frozen=True)
class ServerStatus:
    """How a server is."""

    version: str
    """Of gradwire."""
    server_instance: str
    """Of this process of the server."""
    uptime_seconds: float
    recovered: bool
    """Whether the stored runs are back."""
    runs: int
    """Those that can be served, of all tenants."""
    damaged_runs: int
    """Those that are stored but cannot be served."""
    memory_bytes: int
    """Reserved by runs, staging and results."""
    memory_limit_bytes: int
    certificate_expires_seconds: float
    """When the server's certificate ends, in seconds since 1970, UTC; 0: it has none."""
    certificate_error: str
    """Why the files of TLS were not taken when they were last looked at; empty: they were."""
    access_error: str
    """Why the access file was not taken when it was last looked at; empty: it was, or there is none."""
    event_loop_lag_seconds: float
    """The longest time of the last minute for which the server's event loop did not come to what was due."""
    audit_lines_lost: int
    """Lines of the audit log that could not be written since the server was started."""
    certificate_refusals: int
    """How often since then files of TLS had changed and were not taken."""
    unused_handshakes: int
    """TLS handshakes since then that no call has followed within 15 s: they failed, or nobody used the connection."""
    recovery: Recovery | None
    """None: the server stores no runs, or is too old to say."""


def who_am_i(link: Link) -> WhoAmI:
    """See `Server.who_am_i`."""
    answer = retrying(lambda: link.stub.WhoAmI(service_pb2.WhoAmIRequest()), RetryPolicy(), link)
    expires = datetime.fromtimestamp(answer.expires_seconds, UTC) if answer.expires_seconds else None
    quotas = {quota.name: Quota(quota.used, quota.limit) for quota in answer.quotas}
    role, runs, workers = role_name(answer.role), tuple(answer.runs), tuple(answer.workers)
    return WhoAmI(answer.tenant, role, answer.id, expires, runs, workers, quotas)


def server_status(link: Link) -> ServerStatus:
    """See `Server.status`."""
    answer = retrying(lambda: link.stub.GetServerStatus(service_pb2.GetServerStatusRequest()), RetryPolicy(), link)
    recovery = answer.recovery if answer.HasField("recovery") else None
    told = {field.name: getattr(answer, field.name) for field in fields(ServerStatus)}
    return ServerStatus(**told | {"recovery": None if recovery is None else _recovery(recovery)})


def _recovery(message: service_pb2.Recovery) -> Recovery:
    return Recovery(**{field.name: getattr(message, field.name) for field in fields(Recovery)})


def role_name(role: service_pb2.Role.ValueType) -> str:
    """As users write it; the number of one that a newer server has."""
    known = service_pb2.Role.DESCRIPTOR.values_by_number.get(role)
    return str(int(role)) if known is None else known.name.removeprefix("ROLE_").lower()
