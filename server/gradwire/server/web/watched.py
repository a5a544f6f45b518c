"""What there is to be watched: the parts of one server that know something of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradwire.server.access.audit import AuditLog
from gradwire.server.access.gate import Gate
from gradwire.server.runs.registry import Registry

if TYPE_CHECKING:  # needs a library that a server without TLS does without
    from gradwire.server.access.certificates import RenewedCertificates


@dataclass(frozen=True)
class Watched:
    """Of one server."""

    registry: Registry
    loop_lag_seconds: Callable[[], float]
    """The longest of the last minute; to be asked on the event loop, as the other functions here."""
    unused_handshakes: Callable[[], int]
    unready: Callable[[], str]
    """Why it serves nobody now; empty: it serves."""
    gate: Gate | None = None
    """Asks who comes; None: nobody is asked."""
    audit: AuditLog | None = None
    certificates: RenewedCertificates | None = None
    """The server's own; None: nothing is encrypted."""
