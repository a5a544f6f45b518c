"""A round that is applied: one step of a shared run, and whose gradients it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from gradwire.server.engine.block import Kind, Outcome, Receipt


@dataclass(frozen=True)
class Contributed:
    """A worker's part in a round."""

    worker_id: str
    sequence: int
    weight: float
    staleness: int
    passed: bool = False
    """It adds nothing: it had no gradient, or one that was not finite, which the run skips."""
    skipped: bool = False
    """The latter."""
    received_bytes: int = 0
    """Size of its gradient as it arrived."""


@dataclass(frozen=True)
class AppliedRound:
    """What is remembered, and journaled, of a round besides its combined gradient."""

    number: int
    """Counts the rounds that have been applied, from 1."""
    reason: str
    """Why it closed, as a word."""
    message: str
    """The same for people."""
    contributions: tuple[Contributed, ...]
    """In the order of worker ids, in which they were added."""

    @cached_property
    def total_weight(self) -> float:
        """Of those that add something; every one of them is told."""
        return sum(part.weight for part in self.contributions if not part.passed)

    def receipts(self, receipt: Receipt) -> list[Receipt]:
        """What each contributor is answered, in their order; ``receipt``: the round's own."""
        return [
            receipt._replace(
                skipped_steps=(0,) if part.skipped else (),
                received_bytes=part.received_bytes,
                contribution=self.outcome_of(part),
            )
            for part in self.contributions
        ]

    def outcome_of(self, part: Contributed) -> Outcome:
        """What its sender is told."""
        total = self.total_weight
        return Outcome(
            Kind.ACCEPTED,
            self.reason,
            self.message,
            self.number,
            share=0.0 if part.passed else part.weight / total,
            contributors=len(self.contributions),
            total_weight=total,
            staleness=part.staleness,
        )
