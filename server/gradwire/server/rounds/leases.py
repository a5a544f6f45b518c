"""Who has a place at a shared run, and which of them leads."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from gradwire.server.engine.block import Kind, Outcome
from gradwire.server.engine.run import Run
from gradwire.server.engine.run_events import EventKind
from gradwire.server.engine.shared import SharedRun
from gradwire.server.engine.workers import Holder
from gradwire.server.rounds.members import Member, Members
from gradwire.wire.errors import Fenced, GradwireError, LeaderBusy, RunBusy


@dataclass(frozen=True)
class AttachShared:
    """What a worker of a shared run asks for; see ``gradwire.v1.Attach``."""

    worker_id: str
    takeover: bool = False
    resumes: int = 0
    leads: bool = False
    base_step: int | None = None
    session: str = ""


class Leases:
    """Of one shared run.

    Args:
        clock: the event loop's.
    """

    def __init__(self, run: Run, options: SharedRun, clock: Callable[[], float]) -> None:
        self._run = run
        self._options = options
        self._clock = clock
        self.members = Members(options.lease_seconds)
        self.started = run.rounds > 0
        """Whether the run has had as many workers at a time as it begins with."""
        self._leader = ""
        for worker_id, record in run.workers.items():
            outcome = record.receipt.contribution if record.receipt else None
            if outcome is not None and outcome.round == run.rounds:  # the server has been started anew: they come back
                member = self.members.make(worker_id, clock())
                member.left, member.step = clock(), run.step

    def attach(
        self, attach: AttachShared, on_end: Callable[[GradwireError], None], contributors: Collection[str] = ()
    ) -> Holder:
        """A hold for one worker; its older stream, if it has one, is fenced.

        Args:
            contributors: to the open round, who are not forgotten either.

        Raises RunNotFound, RunBusy, LeaderBusy.
        """
        run, worker_id, now = self._run, attach.worker_id, self._clock()
        run.require_alive()
        leased = {member.worker_id for member in self.all_leased()}
        if len(leased | {worker_id}) > self._options.max_workers:
            raise RunBusy(
                f"{len(leased)} workers are at work on {run.spec.name}, as many as may be (max_workers); expected a "
                "place, which is free when one of them leaves or its lease ends",
                max_workers=self._options.max_workers,
            )
        if attach.leads and not attach.takeover:
            self.require_leader(worker_id)
        member = self.members.make(worker_id, now)
        if attach.resumes and attach.session and member.session not in ("", attach.session):
            why = f"another process has attached to {run.spec.name} as worker {worker_id!r}: do two use one worker_id?"
            raise Fenced(why, applied=None, epoch=run.epoch)
        member.session = attach.session
        if member.hold is not None:
            why = f"worker {worker_id!r} has attached to {run.spec.name} once more: two processes use one worker_id?"
            run.events.note(EventKind.FENCED, f"{worker_id} attached again", run.step)
            member.hold.on_end(Fenced(why, applied=None, epoch=run.epoch))
        elif attach.base_step is None:
            member.step = run.step
        if attach.base_step is not None:
            member.step = min(attach.base_step, run.step)
        member.hold = run.hold(worker_id, on_end, leased | {*contributors})
        member.left, member.aside, member.heard = None, False, now
        run.events.note(EventKind.ATTACHED, f"{worker_id}{', which leads' if attach.leads else ''}", run.step)
        if attach.leads:
            self._leader = worker_id
        elif self._leader == worker_id:
            self._leader = ""
        self.started = self.started or len(leased | {worker_id}) >= self._options.start_with
        return member.hold

    def detach(self, hold: Holder, *, left: bool) -> None:
        """Its stream has ended; one that has said that it leaves is waited for no more."""
        member = self.members.get(hold.worker_id)
        if member is not None and member.hold is hold:
            member.hold = None
            member.left = None if left else self._clock()
            why = "has left" if left else "its stream ended"
            self._run.events.note(EventKind.DETACHED, f"{hold.worker_id}: {why}", self._run.step)
            self._run.note_use()

    def require(self, hold: Holder) -> Member:
        """The member that has this hold, who has just been heard. Raises Fenced where it has none, or another one: what
        an attachment was told of the worker's last contribution would not be so any more."""
        worker_id = hold.worker_id
        member = self.members.get(worker_id)
        if member is None or member.hold is not hold:
            raise Fenced(f"worker {worker_id!r} is not attached to {self._run.spec.name} by this stream", applied=False)
        member.heard = self._clock()
        return member

    def heard(self, worker_id: str) -> None:
        """Something has come from it."""
        member = self.members.get(worker_id)
        if member is not None:
            member.heard = self._clock()

    def sent(self, worker_id: str, step: int) -> None:
        """It gets the parameters of this step."""
        member = self.members.get(worker_id)
        if member is not None:
            member.step = step

    def all_leased(self) -> list[Member]:
        """Those who are waited for, by id."""
        return self.members.all_leased(self._clock())

    def is_leased(self, member: Member) -> bool:
        """Whether it is waited for."""
        return self.members.leased(member, self._clock())

    def is_waited_for(self, worker_id: str) -> bool:
        """Whether a round of all that has begun with it waits for this worker."""
        member = self.members.get(worker_id)
        return member is not None and not member.aside and self.is_leased(member)

    def next_end(self) -> float | None:
        """When, by the clock, a lease ends next; None: none does."""
        return self.members.next_lease_end(self._clock())

    def set_aside(self, workers: Collection[str]) -> None:
        """They are not waited for until they contribute or attach."""
        for worker_id in workers:
            member = self.members.get(worker_id)
            if member is not None:
                member.aside = True

    def note(self, worker_id: str, outcome: Outcome) -> None:
        """Counts what became of a contribution."""
        member = self.members.get(worker_id)
        if member is not None:
            member.outcomes[outcome.kind] += 1
        if outcome.kind is Kind.ACCEPTED:
            weight = outcome.share * outcome.total_weight
            self.members.total_weight += weight
            if member is not None:
                member.weight += weight

    @property
    def leader(self) -> str:
        """Who changes hyperparameters; empty: nobody, at present."""
        member = self.members.get(self._leader)
        return self._leader if member is not None and self.is_leased(member) else ""

    def require_leader(self, worker_id: str) -> None:
        """Raises LeaderBusy where another worker leads."""
        leader = self.leader
        if leader not in ("", worker_id):
            raise LeaderBusy(
                f"worker {leader!r} leads {self._run.spec.name}: what is changed for all comes from it alone. Expected "
                "a takeover, or that it leaves",
                leader=leader,
            )
