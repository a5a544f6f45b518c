"""What people are told of a shared run: who works on it, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gradwire.server.engine.block import Kind
from gradwire.server.engine.run import Run
from gradwire.server.engine.workers import WorkerRecord
from gradwire.server.rounds.members import Member
from gradwire.server.rounds.rounds import Rounds, rounds_of


@dataclass(frozen=True)
class WorkerReport:
    """See ``gradwire.v1.Worker``."""

    worker_id: str
    attached: bool
    leased: bool
    leads: bool
    aside: bool
    last_heard_seconds: float
    last_sequence: int
    last_accepted_sequence: int
    step: int
    waiting: bool
    outcomes: Mapping[Kind, int]
    share: float


@dataclass(frozen=True)
class Report:
    """See ``gradwire.v1.ListWorkersResponse``."""

    workers: tuple[WorkerReport, ...]
    waiting_for: str
    open_seconds: float
    round: int


def reported(run: Run) -> Report:
    """As it is now. On the event loop."""
    rounds = rounds_of(run)
    reason, seconds = rounds.why_it_waits()
    workers = tuple(_of(rounds, member) for member in rounds.leases.members)
    return Report(workers, reason, seconds, run.rounds + 1)


def _of(rounds: Rounds, member: Member) -> WorkerReport:
    record = rounds.run.workers.get(member.worker_id, WorkerRecord())
    total = rounds.leases.members.total_weight
    return WorkerReport(
        member.worker_id,
        attached=member.hold is not None,
        leased=rounds.leases.is_leased(member),
        leads=rounds.leases.leader == member.worker_id,
        aside=member.aside,
        last_heard_seconds=rounds.now() - member.heard,
        last_sequence=record.last_sequence,
        last_accepted_sequence=record.last_accepted,
        step=member.step,
        waiting=rounds.waiting(member.worker_id) is not None,
        outcomes=dict(member.outcomes),
        share=member.weight / total if total else 0.0,
    )
