"""What contributors are told whose gradients were not applied; `AppliedRound.receipts` is for the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gradwire.server.engine.applied_round import AppliedRound
from gradwire.server.engine.block import Kind, Outcome, Receipt
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import Durability
from gradwire.server.rounds.staged import StagedContribution


def refused(run: Run, contribution: StagedContribution, kind: Kind, reason: str, message: str) -> Receipt:
    """Of one that was part of none."""
    return _not_applied(run, contribution, Outcome(kind, reason, message, staleness=contribution.staleness))


def dropped(
    run: Run, contributions: Iterable[StagedContribution], reason: str, message: str
) -> list[tuple[StagedContribution, Receipt]]:
    """Of those of a round that was not applied."""
    parts = [(contribution, contribution.part) for contribution in contributions]
    # The round that would have been applied, and what it would have said.
    would_be = AppliedRound(run.rounds + 1, reason, message, tuple(part for _, part in parts))
    outcomes = [replace(would_be.outcome_of(part), kind=Kind.DROPPED, share=0.0) for _, part in parts]
    return [
        (contribution, _not_applied(run, contribution, outcome))
        for (contribution, _), outcome in zip(parts, outcomes, strict=True)
    ]


def _not_applied(run: Run, contribution: StagedContribution, outcome: Outcome) -> Receipt:
    return Receipt(
        step=run.step,
        gradient_norm=0.0,
        learning_rates=tuple(group.learning_rate(max(run.step, 1)) for group in run.groups),
        received_bytes=contribution.received_bytes,
        durability=run.spec.durability or Durability.MEMORY,
        contribution=outcome,
    )
