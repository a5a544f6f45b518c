"""What the workers of a shared run were told, put together: which contribution was part of which round, and whether all
of that can be true."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from tests.robustness.model import Violation
from tests.robustness.servers import life_of
from tests.robustness.shared import events
from tests.robustness.shared.events import Event
from tests.robustness.shared.past import Contribution, Lives, Round, Write, contributions_of, lasting
from tests.robustness.shared.setting import Sent, Setting

EXPECTED_FAILURES = {
    "",  # the connection, or the stream, is gone
    "STARTING",
    "DRAINING",
    "FENCED",
    "RUN_NOT_FOUND",
    "RUN_ALREADY_EXISTS",
    "STORAGE_FULL",
    "STORAGE_FAILED",
}
"""With what a stream or a call may end: the others say that somebody has made a mistake, and nobody has."""


class Account:
    """Of one run, that is of one uid. Raises Violation from the constructor on.

    Args:
        histories: what each worker has noted.
        writes: in order.
    """

    def __init__(
        self,
        setting: Setting,
        uid: str,
        histories: Mapping[str, Sequence[Event]],
        lives: Lives,
        writes: Sequence[Write] = (),
    ) -> None:
        self.setting = setting
        self.uid = uid
        self.lives = lives
        self.writes = [write for write in writes if write.life in lives.bases]
        self.histories = histories
        self.contributions = list(contributions_of(uid, histories))
        self.rounds: dict[tuple[int, int], Round] = {}
        self.outcomes: Counter[str] = Counter()
        for contribution in self.contributions:
            self._enter(contribution)
        for (_, number), round in self.rounds.items():
            self._check_round(number, round)
        self._check_losses()

    def wrong(self, what: str) -> Violation:
        return Violation(f"{self.setting.name}: {what}")

    # --- one contribution --------------------------------------------------------------------------------------------

    def _enter(self, contribution: Contribution) -> None:
        sent, worker_id = contribution.sent, contribution.worker_id
        what = f"contribution {sent.sequence} of {worker_id}"
        if not contribution.told:
            return
        if len({lasting(told) for told in contribution.told}) > 1:
            raise self.wrong(f"{what} has more than one outcome: {contribution.told}")
        first = contribution.told[0]
        self.outcomes[first.kind] += 1
        if first.kind != "ACCEPTED":
            self._check_refusal(what, sent, first)
            return
        owner = self.lives.owner(life_of(first.instance), first.round)
        if not first.repeated and owner != life_of(first.instance):
            raise self.wrong(f"{what} is said to be part of round {first.round}, which was applied long before")
        members = self.rounds.setdefault((owner, first.round), {})
        if worker_id in members:
            raise self.wrong(f"{worker_id} is twice in round {first.round}: a contribution was counted twice")
        members[worker_id] = contribution
        staleness = first.round - 1 - sent.base_step
        if first.staleness != staleness or not 0 <= staleness <= self.setting.max_staleness:
            raise self.wrong(
                f"{what} was applied {staleness} steps after its parameters, and said to be {first.staleness} old; "
                f"expected at most {self.setting.max_staleness}: a stale one was applied"
            )
        if first.skipped != (sent.kind == "nan") or (sent.kind == "nan" and not self.setting.skips):
            raise self.wrong(f"{what} is {sent.kind}, and was accepted, skipped: {first.skipped}")

    def _check_refusal(self, what: str, sent: Sent, told: events.Told) -> None:
        setting, reason = self.setting, f"{told.kind} {told.reason}"
        true = {
            "STALE TOO_STALE": setting.max_staleness < told.staleness <= told.step - sent.base_step,
            "STALE HISTORY_CHANGED": told.epoch != sent.base_epoch,
            "REFUSED NON_FINITE_GRADIENT": sent.kind == "nan" and not setting.skips,
            "DROPPED NO_QUORUM": (setting.fails or told.contributors < setting.at_least)
            and (not setting.quorum or told.contributors < setting.quorum or bool(setting.quorum_weight)),
            "DROPPED ROUND_NOT_FINITE": setting.overflows,
        }
        if not true.get(reason, False):
            raise self.wrong(f"{what} was answered with what is not true: {told}; it was {sent}")

    # --- a round -----------------------------------------------------------------------------------------------------

    def complete(self, round: Round) -> bool:
        """Whether all of its contributors are known."""
        return len(round) == next(told.contributors for each in round.values() if (told := each.accepted))

    def _check_round(self, number: int, round: Round) -> None:
        found = [told for each in round.values() if (told := each.accepted)]
        if len({(told.contributors, told.total_weight, told.reason) for told in found}) > 1:
            raise self.wrong(f"those of round {number} were told different things of it: {found}")
        one, setting = found[0], self.setting
        if len(round) > one.contributors:
            raise self.wrong(f"round {number} has {one.contributors} contributors, and {sorted(round)} were told so")
        enough = setting.at_least if one.reason == "DEADLINE" and not setting.fails else setting.quorum
        if one.contributors < enough or one.reason not in ("QUORUM", "SET_ASIDE", "DEADLINE"):
            raise self.wrong(f"round {number} closed with {one.contributors} contributors, {one.reason}")
        if not self.complete(round):
            return
        weight = math.fsum(each.sent.weight for each in round.values())
        if one.reason != "DEADLINE" and weight < setting.quorum_weight:
            raise self.wrong(f"round {number} closed with a weight of {weight}, {one.reason}")
        adding = [round[name].sent.weight for name in sorted(round) if not round[name].sent.passes(setting)]
        if not math.isclose(one.total_weight, sum(adding)):
            raise self.wrong(f"round {number} has a total weight of {one.total_weight}; expected {sum(adding)}")
        for name, each in round.items():
            share = 0.0 if each.sent.passes(setting) else each.sent.weight / sum(adding)
            if each.accepted and not math.isclose(each.accepted.share, share):
                raise self.wrong(f"round {number}: the share of {name} is {each.accepted.share}; expected {share}")

    # --- over servers ------------------------------------------------------------------------------------------------

    def in_history(self, life: int, contribution: Contribution) -> bool:
        """Whether the run on the server ``life`` has it, or comes to have it: it was accepted, and not lost before."""
        told = contribution.accepted
        if told is None:
            return False
        owner = self.lives.owner(life_of(told.instance), told.round)
        return owner <= life and self.lives.owner(life, told.round) == owner

    def check_attachments(self) -> None:
        """What each attachment has said of the last accepted contribution is so. Raises Violation."""
        for worker_id, history in self.histories.items():
            self._check_attachments(worker_id, history)

    def _check_attachments(self, worker_id: str, history: Sequence[Event]) -> None:
        own = {each.sent.key: each for each in self.contributions if each.worker_id == worker_id}
        known: dict[int, Contribution] = {}
        last_sent: Contribution | None = None
        for event in history:
            if isinstance(event, Sent):
                last_sent = own.get(event.key)
            elif isinstance(event, events.Told) and event.key in own:
                known[event.key] = own[event.key]
            elif isinstance(event, events.Attached) and event.uid == self.uid:
                life = life_of(event.instance)
                accepted = [each.sent.sequence for each in known.values() if self.in_history(life, each)]
                allowed = {max(accepted, default=0)}
                if last_sent is not None and last_sent.sent.key not in known:
                    # Accepted, lost, and sent again before its worker was told: a journal does not let that happen.
                    may_be_lost = self.setting.durability != "JOURNAL"
                    if may_be_lost or self.in_history(life, last_sent):
                        allowed.add(last_sent.sent.sequence)
                if event.accepted not in allowed:
                    raise self.wrong(
                        f"{worker_id} was told that its last accepted contribution is {event.accepted}; expected one "
                        f"of {sorted(allowed)}"
                    )

    def _check_losses(self) -> None:
        """What has been seen on one server is there on the next, where that is promised; else the epoch says so."""
        seen: dict[int, tuple[int, int]] = {}
        for history in self.histories.values():
            for event in history:
                if isinstance(event, (events.Told, events.Attached)) and event.uid == self.uid:
                    life = life_of(event.instance)
                    step, epoch = seen.get(life, (0, 0))
                    seen[life] = max(step, event.step), max(epoch, event.epoch)
        unexplained = {epoch for _, epoch in seen.values()} - {0, *(write.epoch for write in self.writes)}
        if unexplained and self.setting.durability == "JOURNAL":
            raise self.wrong(f"its epoch was {unexplained}, and neither has anybody written nor was anything lost")
        for before, after in self.lives.pairs():
            step, epoch = seen.get(before, (0, 0))
            base = self.lives.bases[after]
            if step <= base:
                continue
            if self.setting.durability == "JOURNAL" or before in self.lives.orderly:
                raise self.wrong(
                    f"step {step} has been seen, and then it was at step {base}: acknowledged steps are lost"
                )
            epochs = [
                event.epoch
                for history in self.histories.values()
                for event in history
                if isinstance(event, (events.Told, events.Attached)) and event.uid == self.uid
                if life_of(event.instance) == after
            ]
            if epochs and min(epochs) <= epoch:
                what = f"it has gone back from step {step} to {base}, and the epoch is {min(epochs)} as before"
                raise self.wrong(f"{what}: nobody is told")


def check_each(setting: Setting, histories: Mapping[str, Sequence[Event]]) -> None:
    """What a worker may never see. Raises Violation."""
    for worker_id, history in histories.items():
        for event in history:
            if isinstance(event, events.Wrong):
                raise Violation(event.what)
            if isinstance(event, events.Gone) and setting.durability != "MEMORY":
                raise Violation(f"{setting.name} is gone, as {worker_id} has been told")
            if isinstance(event, events.Failed) and event.reason not in EXPECTED_FAILURES:
                raise Violation(f"{setting.name}, {worker_id}: {event}")
