"""What people are told of a shared run: who works on it, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gradwire.server.engine.activity import Wait, WaitsFor
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
    wait: Wait | None


@dataclass(frozen=True)
class Report:
    """See ``gradwire.v1.ListWorkersResponse``."""

    workers: tuple[WorkerReport, ...]
    waiting_for: str
    open_seconds: float
    round: int


@dataclass(frozen=True)
class Overview:
    """A few of the workers, and how many there are."""

    report: Report
    worker_count: int
    outcomes: Mapping[Kind, int]
    """Of all workers together."""


def wait_of(run: Run) -> Wait | None:
    """What a run waits for, in few words; None: nobody is attached, or there is nothing that it waits for. Cheap also
    where there are many workers. On the event loop."""
    if run.spec.shared is None:
        return None if run.holder is None else run.holder.wait()
    if run.shared_workers is None:
        return None
    here, open_seconds = rounds_of(run).contributed
    if not here:
        return None
    text = f"round {run.rounds + 1}, with {here} of {run.attached_workers} workers here"
    return Wait(WaitsFor.ROUND, text, open_seconds)


def reported(run: Run) -> Report:
    """As it is now. On the event loop."""
    rounds = rounds_of(run)
    reason, seconds = rounds.why_it_waits()
    workers = tuple(_of(rounds, member, reason) for member in rounds.leases.members)
    return Report(workers, reason, seconds, run.rounds + 1)


def overview(run: Run, most: int) -> Overview:
    """As `reported`, of ``most`` workers, those first who are attached; cheap also where there are many. On the event
    loop."""
    rounds = rounds_of(run)
    reason, seconds = rounds.why_it_waits()
    members = list(rounds.leases.members)
    outcomes = {kind: sum([member.outcomes[kind] for member in members]) for kind in Kind}
    shown = sorted(members, key=lambda member: (member.hold is None, member.left is None))[:most]
    workers = tuple(_of(rounds, member, reason) for member in shown)
    return Overview(Report(workers, reason, seconds, run.rounds + 1), len(members), outcomes)


def _of(rounds: Rounds, member: Member, reason: str) -> WorkerReport:
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
        waiting=rounds.has_contributed(member.worker_id),
        outcomes=dict(member.outcomes),
        share=member.weight / total if total else 0.0,
        wait=None if member.hold is None else _explained(member.hold.wait(), reason),
    )


def _explained(wait: Wait | None, reason: str) -> Wait | None:
    """With the reason for which the open round waits, if that is what is waited for."""
    if wait is None or wait.kind is not WaitsFor.ROUND or not reason:
        return wait
    return wait._replace(text=f"{wait.text}: {reason}")
