"""Contributions to shared runs: what became of them."""

from __future__ import annotations

OUTCOMES = ("accepted", "stale", "refused", "dropped")


class ContributionCounters:
    """Of all shared runs of one server."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.rounds = 0
        """That were applied: each is one step of its run."""
        self.dropped_rounds = 0
        """That came to nothing, for reasons of their own."""
