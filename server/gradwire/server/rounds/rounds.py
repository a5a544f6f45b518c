"""All who work on a shared run: who is there, the round that is open, and what becomes of it."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

from gradwire.server.engine.block import Kind, Receipt
from gradwire.server.engine.run import Run
from gradwire.server.engine.run_events import EventKind
from gradwire.server.engine.shared import SharedRun
from gradwire.server.engine.workers import Holder
from gradwire.server.metrics.contributions import ContributionCounters
from gradwire.server.rounds.answers import dropped, refused
from gradwire.server.rounds.closing import close_round
from gradwire.server.rounds.generations import Generation, Generations
from gradwire.server.rounds.leases import AttachShared, Leases
from gradwire.server.rounds.open_round import Round
from gradwire.server.rounds.rule import Action, Decision, OpenRound, decide, has_quorum
from gradwire.server.rounds.staged import StagedContribution, Stagings
from gradwire.wire.errors import Fenced, GradwireError, InternalError, NonFiniteGradient, ProtocolViolation

log = logging.getLogger(__name__)

_LONG_SECONDS = 10.0
"""After so long the log says once what a round waits for."""


class Rounds:
    """See `rounds_of`. Everything here is for the thread of the event loop, but for `end`, and what changes the run
    happens under its lock."""

    def __init__(self, run: Run, options: SharedRun) -> None:
        self.run = run
        self.options = options
        self.stagings = Stagings(run)
        self.generations = Generations(run)
        self.counters = ContributionCounters()
        """The server's own, once a stream has come."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.leases = Leases(run, options, self._loop.time)
        self._open: Round | None = None
        self._closing: asyncio.Task[None] | None = None
        self._applied: Round | None = None
        """That is about to be applied."""
        self._timer: asyncio.TimerHandle | None = None
        self._frozen = False
        run.on_delete += [lambda: self.stagings.keep(0), self.generations.release]

    # --- what the run itself knows of, see `engine.shared.Workers` ------------------------------------------------

    @property
    def attached(self) -> int:
        return self.leases.members.attached

    @property
    def holders(self) -> list[Holder]:
        return self.leases.members.holders

    @property
    def overdue_seconds(self) -> float:
        round = self._applied or self._open
        if round is None or not self.leases.started:  # until there are enough workers, no time runs
            return 0.0
        return max(0.0, self._loop.time() - round.opened - self.options.deadline_seconds)

    def end(self, error: GradwireError) -> None:
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self.end, error)
            return
        self._drop(error)
        for member in self.leases.members:
            if member.hold is not None:
                member.hold.on_end(copy.copy(error))

    def freeze(self) -> None:
        self._frozen = True

    # --- who is there ------------------------------------------------------------------------------------------------

    async def attach(
        self, attach: AttachShared, on_end: Callable[[GradwireError], None]
    ) -> tuple[Holder, StagedContribution | None]:
        """A hold for one worker, which ends no hold of others, and its contribution that waits in the open round, if
        that is what it resumes; anything else of its is withdrawn.

        Raises RunNotFound, RunBusy where there are as many workers as may be, LeaderBusy.
        """
        while True:
            while self.is_closing(attach.worker_id):
                await self.settled()
            found = await self.run.lock.run(lambda: self._attach(attach, on_end))
            if found is not None:
                self.consider()
                return found

    def _attach(
        self, attach: AttachShared, on_end: Callable[[GradwireError], None]
    ) -> tuple[Holder, StagedContribution | None] | None:
        """None: its contribution is about to be applied."""
        if self.is_closing(attach.worker_id):
            return None
        started, leader = self.leases.started, self.leases.leader
        contributors = frozenset() if self._open is None else frozenset(self._open.contributions)
        hold = self.leases.attach(attach, on_end, contributors)
        if attach.leads:
            for deposed in {leader, *self._changing} - {"", attach.worker_id}:
                self._depose(deposed, attach.worker_id)
        if self._open is not None and not started:  # until there are enough, it has not really opened
            self._open.opened = self._loop.time()
            self._open.awaited = self._leased
        waiting = self.waiting(attach.worker_id)
        if waiting is not None and waiting.sequence != attach.resumes:
            self.withdraw(waiting)
            waiting = None
        return hold, waiting

    @property
    def _changing(self) -> set[str]:
        """Whose waiting contributions change hyperparameters: of one who led, and whose lease may have ended."""
        waiting = {} if self._open is None else self._open.contributions
        return {worker_id for worker_id, contribution in waiting.items() if contribution.header.overrides}

    def _depose(self, leader: str, by: str) -> None:
        """Another worker has taken the lead over: what the old leader has changed with its waiting contribution is not
        to be, and it is told so."""
        member, waiting = self.leases.members.get(leader), self.waiting(leader)
        if waiting is not None:
            self.withdraw(waiting)
        if member is not None and member.hold is not None:
            why = f"worker {by!r} has taken over the lead of {self.run.spec.name}; this stream had it"
            member.hold.on_end(Fenced(why, applied=None, epoch=self.run.epoch))
            self.leases.detach(member.hold, left=False)  # else what is still arriving on it would join the next round

    def detach(self, hold: Holder, *, left: bool) -> None:
        """The stream of a hold has ended; ``left``: its worker has said that it leaves."""
        self.leases.detach(hold, left=left)
        self._trim()
        self.consider()

    # --- contributions ---------------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """Whether a round is about to be applied."""
        return self._closing is not None

    def is_closing(self, worker_id: str) -> bool:
        """Whether one is that has a contribution of this worker."""
        return self._applied is not None and worker_id in self._applied.contributions

    async def settled(self, timeout_seconds: float | None = None) -> None:
        """Returns when the round that is about to be applied, if one is, has been, or after the time."""
        if self._closing is not None:
            await asyncio.wait({self._closing}, timeout=timeout_seconds)

    async def offer(self, contribution: StagedContribution) -> None:
        """Decides at once, or when its round closes, what becomes of a contribution: see its ``answer``.

        Raises ProtocolViolation for a base that is no step of the run's, Draining, Fenced, RunNotFound.
        """
        while True:
            await self.settled()
            if await self.run.lock.run(lambda: not self.closing and self._offer(contribution)):
                round = self._open
                if round is None or not round.plainly_waits(self.options.quorum, self.leases.is_waited_for):
                    self.consider()
                return

    def _offer(self, contribution: StagedContribution) -> bool:
        run, says = self.run, contribution.says
        run.require_open()
        member = self.leases.require(contribution.hold)
        contribution.staleness = run.step - says.base_step
        if says.base_epoch > run.epoch or (says.base_epoch == run.epoch and contribution.staleness < 0):
            raise ProtocolViolation(
                f"the contribution is of step {says.base_step}, epoch {says.base_epoch}; {run.spec.name} is at step "
                f"{run.step}, epoch {run.epoch}: expected one of parameters that there have been"
            )
        member.aside = False
        if says.base_epoch != run.epoch:
            contribution.staleness = 0
            why = "the run's history has changed since its parameters were sent: a write, a roll-back, or lost steps"
            self._answer(contribution, refused(run, contribution, Kind.STALE, "HISTORY_CHANGED", why))
        elif contribution.staleness > self.options.max_staleness:
            why = f"it is {contribution.staleness} steps old; the run takes up to {self.options.max_staleness}"
            self._answer(contribution, refused(run, contribution, Kind.STALE, "TOO_STALE", why))
        elif contribution.refusal:
            why = contribution.refusal
            self._answer(contribution, refused(run, contribution, Kind.REFUSED, NonFiniteGradient.reason, why))
        else:
            self._join(contribution)
        return True

    def _join(self, contribution: StagedContribution) -> None:
        now = self._loop.time()
        if self._open is not None and self._open.epoch != self.run.epoch:  # `end` is on its way
            self._drop(Fenced(f"{self.run.spec.name} has been changed", applied=False))
        if self._open is None:
            self._open = Round(self.run.epoch, now, self._leased)
        self._open.contributions[contribution.worker_id] = contribution

    @property
    def _leased(self) -> frozenset[str]:
        return frozenset(member.worker_id for member in self.leases.all_leased())

    def _answer(self, contribution: StagedContribution, receipt: Receipt) -> None:
        """It has its outcome."""
        run, worker_id = self.run, contribution.worker_id
        assert receipt.contribution is not None
        record = run.workers.get(worker_id)
        if record is not None and receipt.contribution.kind is not Kind.ACCEPTED:  # those the run has noted itself
            record.answer(contribution.sequence, receipt, run.spec.layout.elements)
        self.leases.note(worker_id, receipt.contribution)
        self.counters.outcomes[receipt.contribution.kind.name.lower()] += 1
        self._release(contribution)
        contribution.answer.set_result(receipt)

    def withdraw(self, contribution: StagedContribution) -> bool:
        """Takes it out of its round; False: that is about to be applied, or it has its answer already."""
        if self.is_closing(contribution.worker_id) or contribution.answer.done():
            return False
        round = self._open
        if round is not None and round.contributions.get(contribution.worker_id) is contribution:
            del round.contributions[contribution.worker_id]
            if not round.contributions:
                self._open = None
        self._release(contribution)
        contribution.answer.cancel()
        self.consider()
        return True

    def has_contributed(self, worker_id: str) -> bool:
        """Whether the worker waits for a round to close, or to have been applied."""
        return self.waiting(worker_id) is not None or self.is_closing(worker_id)

    def waiting(self, worker_id: str) -> StagedContribution | None:
        """The worker's contribution in the open round."""
        return None if self._open is None else self._open.contributions.get(worker_id)

    def release(self, contribution: StagedContribution) -> None:
        """It is in no round."""
        if not contribution.answer.done():
            contribution.answer.cancel()
            self._release(contribution)

    def _release(self, contribution: StagedContribution) -> None:
        self.stagings.give(contribution.staging)
        contribution.staging = None
        self._trim()

    def _trim(self) -> None:
        self.stagings.keep(0 if self.run.ended else self.attached)

    def _drop(self, error: GradwireError) -> None:
        """The open round comes to nothing, for another reason than its own."""
        round, self._open = self._open, None
        if round is not None:
            for contribution in round.contributions.values():
                self._fail(contribution, error, applied=False)

    def _fail(self, contribution: StagedContribution, error: GradwireError, *, applied: bool | None) -> None:
        self._release(contribution)
        failure = copy.copy(error)  # each stream adds to its own what it knows
        failure.metadata = dict(failure.metadata)
        failure.applied = applied
        contribution.answer.set_exception(failure)
        contribution.answer.exception()  # its stream may have gone: then nobody asks

    # --- the open round ----------------------------------------------------------------------------------------------

    def consider(self) -> None:
        """Looks what becomes of the open round; to be called after whatever may have changed that."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        round = self._open
        if round is None or self._closing is not None or self._frozen or self.run.ended:
            return
        now = self._loop.time()
        seen = self._seen(round, now)
        quorate = self.leases.started and has_quorum(seen, self.options)
        round.quorate = (now if round.quorate is None else round.quorate) if quorate else None
        seen = replace(seen, quorate=round.quorate)
        decision = decide(now, seen, self.options)
        self.leases.set_aside(decision.aside)
        if decision.action is Action.WAIT:
            times = [time for time in (decision.until, self.leases.next_end()) if time is not None]
            if times:
                self._timer = self._loop.call_at(max(min(times), now + 0.001), self.consider)
            return
        if decision.action is Action.FAIL or decision.reason != "QUORUM":
            log.warning("%s, round %d: %s", self.run.spec.name, self.run.rounds + 1, decision.message)
        self._open = None
        if decision.action is Action.FAIL:
            self._dropped(round, decision.reason, decision.message)
            return
        self._applied = round
        self._closing = asyncio.ensure_future(self._close(round, decision))

    def _seen(self, round: Round, now: float) -> OpenRound:
        return round.seen(now, self.run.step, self.leases.all_leased(), started=self.leases.started)

    async def _close(self, round: Round, decision: Decision) -> None:
        """Applies a round, and tells all who are part of it. Nothing of what it does is any stream's own."""
        contributions, applied = round.ordered, round.applied(self.run.rounds + 1, decision)
        try:
            receipt = await close_round(self.run, self.generations, self.stagings, round.epoch, applied, contributions)
        except NonFiniteGradient as error:
            self._dropped(round, "ROUND_NOT_FINITE", f"the combined gradient is not finite: {error.message}")
        except GradwireError as error:
            for contribution in contributions:
                self._fail(contribution, error, applied=error.applied)
        except BaseException as error:
            log.exception("round %d of %s could not be applied", applied.number, self.run.spec.name)
            failure = InternalError(f"round {applied.number} could not be applied; the server's log says more")
            for contribution in contributions:
                self._fail(contribution, failure, applied=None)
            if not isinstance(error, Exception):
                raise
        else:
            self.generations.publish()
            self.run.activity.applied(1, perf_counter())
            self.counters.rounds += 1
            for contribution, own in zip(contributions, applied.receipts(receipt), strict=True):
                self._answer(contribution, own)
        finally:
            self._closing = self._applied = None
            self._loop.call_soon(self.consider)

    def _dropped(self, round: Round, reason: str, message: str) -> None:
        self.counters.dropped_rounds += 1
        self.run.events.note(EventKind.ROUND_DROPPED, message, self.run.step)
        for contribution, receipt in dropped(self.run, round.ordered, reason, message):
            self._answer(contribution, receipt)

    # --- what is said of it ------------------------------------------------------------------------------------------

    def why_it_waits(self) -> tuple[str, float]:
        """Why the open round has not closed, and since when, in seconds; ``("", 0)``: none is open."""
        now = self._loop.time()
        if self._applied is not None:
            readers = self.generations.holding_up
            reason = f"waits until {', '.join(readers)} has read an older answer" if readers else "its round is applied"
            return reason, now - self._applied.opened
        round = self._open
        if round is None:
            return "", 0.0
        decision = decide(now, self._seen(round, now), self.options)
        reason = decision.message
        if now - round.opened >= _LONG_SECONDS and not round.told:
            round.told = True
            log.info("%s, round %d: %s", self.run.spec.name, self.run.rounds + 1, reason)
        return reason, now - round.opened

    @property
    def contributed(self) -> tuple[int, float]:
        """How many contributions wait for a round to close or to be applied, and since when that is open, in
        seconds."""
        round = self._applied or self._open
        return (0, 0.0) if round is None else (len(round.contributions), self._loop.time() - round.opened)

    async def pin(self, reader: str) -> Generation:
        """The newest parameters, for `Generations.unpin`."""
        return await self.run.lock.run(lambda: self.generations.pin(reader))

    def now(self) -> float:
        """By the clock of members and rounds."""
        return self._loop.time()


def rounds_of(run: Run) -> Rounds:
    """The rounds of a shared run, made when they are asked for first. On the event loop."""
    assert run.spec.shared is not None
    if run.shared_workers is None:
        run.shared_workers = Rounds(run, run.spec.shared)
    assert isinstance(run.shared_workers, Rounds)
    return run.shared_workers


def note_read(run: Run, worker_id: str, step: int) -> None:
    """A worker of a shared run goes on with parameters of this step, which it has read."""
    if worker_id and run.spec.shared is not None:
        rounds = rounds_of(run)
        rounds.leases.sent(worker_id, step)
        rounds.consider()


def require_leader(run: Run, worker_id: str) -> None:
    """Raises LeaderBusy where a worker would change a shared run for all that another one leads.

    Args:
        worker_id: empty: no worker, but an operator, who may.
    """
    if worker_id and run.spec.shared is not None:
        rounds_of(run).leases.require_leader(worker_id)
