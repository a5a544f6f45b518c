"""A round from its first contribution to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gradwire.server.engine.applied_round import AppliedRound
from gradwire.server.rounds.members import Member
from gradwire.server.rounds.rule import Decision, OpenRound, Owing
from gradwire.server.rounds.staged import StagedContribution


@dataclass(eq=False)
class Round:
    """One that is open, or about to be applied. Times are seconds of the event loop's clock."""

    epoch: int
    """Of the run when it opened."""
    opened: float
    awaited: frozenset[str]
    """Who was leased when it opened."""
    contributions: dict[str, StagedContribution] = field(default_factory=dict)
    quorate: float | None = None
    """When it had its quorum; None: not yet."""
    told: bool = False
    """Whether the log has said what it waits for."""

    def seen(self, now: float, step: int, leased: Iterable[Member], *, started: bool) -> OpenRound:
        """As the rule sees it.

        Args:
            step: of the run.
            started: whether the run has had as many workers at a time as it begins with.
        """
        owing = [
            Owing(member.worker_id, member.step, now - member.heard, member.worker_id in self.awaited, member.aside)
            for member in leased
            if member.worker_id not in self.contributions
        ]
        weights = [contribution.says.weight for contribution in self.contributions.values()]
        return OpenRound(self.opened, step, weights, owing, self.quorate, started)

    def plainly_waits(self, quorum: int | None, waited_for: Callable[[str], bool]) -> bool:
        """Whether its newest contribution changes nothing, for it lacks others, and has been considered with its first
        one. To look at all members for each of many contributions costs more than all else that a round does.

        Args:
            waited_for: whether that is so of the worker of this id.
        """
        if self.quorate is not None or len(self.contributions) == 1:
            return False
        if quorum is not None:
            return len(self.contributions) < quorum
        return any(waited_for(name) for name in self.awaited if name not in self.contributions)

    @property
    def ordered(self) -> list[StagedContribution]:
        """Its contributions in the order of worker ids."""
        return [self.contributions[worker_id] for worker_id in sorted(self.contributions)]

    def applied(self, number: int, decision: Decision) -> AppliedRound:
        """What is remembered of it when it has been applied."""
        return AppliedRound(number, decision.reason, decision.message, tuple(each.part for each in self.ordered))
