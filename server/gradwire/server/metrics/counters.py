"""All that is counted of one server by what happens in its calls and streams."""

from __future__ import annotations

from gradwire.server.metrics.blocks import BlockCounters
from gradwire.server.metrics.calls import CallCounters
from gradwire.server.metrics.contributions import ContributionCounters
from gradwire.server.metrics.traffic import Traffic
from gradwire.wire.errors import GradwireError, PermissionDenied, PermissionRevoked, QuotaExceeded, Unauthenticated

DENIALS = (Unauthenticated, PermissionDenied, PermissionRevoked, QuotaExceeded)
"""Refusals because of who calls."""

ASKED, RECOVERY = "asked", "recovery"
"""Why a run is at an earlier step: somebody wanted it so, or the server was killed before it had stored the rest."""


class Counters:
    """Plain numbers; what else there is to know of a server is asked where it is kept."""

    def __init__(self) -> None:
        self.calls = CallCounters()
        self.blocks = BlockCounters()
        self.contributions = ContributionCounters()
        self.traffic = Traffic()
        self.denied = {kind.reason: 0 for kind in DENIALS}
        """By reason."""
        self.page_streams = 0
        """Event streams of the page that are open."""
        self.page_streams_refused = 0
        """That were turned away, since there were as many as there may be."""
        self.rolled_back = {ASKED: 0, RECOVERY: 0}

    def refused(self, error: GradwireError) -> None:
        """A call ends with ``error``."""
        if error.reason in self.denied:
            self.denied[error.reason] += 1
