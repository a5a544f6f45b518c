"""What a shared run has been through: contributions with their answers, writes, one server after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.robustness.model import Violation
from tests.robustness.shared import events
from tests.robustness.shared.events import Event
from tests.robustness.shared.setting import Sent


@dataclass
class Contribution:
    """One of a worker's, and what it was told of it, in order."""

    worker_id: str
    sent: Sent
    uid: str
    """Of the run that it was sent to first."""
    told: list[events.Told] = field(default_factory=list)

    @property
    def accepted(self) -> events.Told | None:
        """The first answer, if it says that."""
        return self.told[0] if self.told and self.told[0].kind == "ACCEPTED" else None


@dataclass(frozen=True)
class Write:
    """Parameters that were written, and the answer to that."""

    life: int
    step: int
    epoch: int
    params: bytes


@dataclass
class Lives:
    """The servers that a run has been on, by number."""

    bases: dict[int, int] = field(default_factory=dict)
    """The run's step when the server had brought it back."""
    orderly: set[int] = field(default_factory=set)
    """Those that have ended in order."""

    def owner(self, life: int, round: int) -> int:
        """The server on which the round was applied that the run had, on the server ``life``, under this number."""
        for number in sorted(self.bases, reverse=True):
            if number <= life and round > self.bases[number]:
                return number
        raise Violation(f"round {round} is said to be applied; there is none of that number")

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Each server and the next one."""
        numbers = sorted(self.bases)
        return pairwise(numbers)


Round = dict[str, Contribution]
"""By worker id, in that order when it is complete."""


def contributions_of(uid: str, histories: Mapping[str, Sequence[Event]]) -> Iterator[Contribution]:
    """All that were sent to the run of this uid, worker by worker, with what each was told."""
    for worker_id, history in sorted(histories.items()):
        there, found = "", dict[int, Contribution]()
        for event in history:
            if isinstance(event, events.Attached):
                there = event.uid
            elif isinstance(event, Sent):
                found.setdefault(event.key, Contribution(worker_id, event, there))
            elif isinstance(event, events.Told):
                found[event.key].told.append(event)
        yield from (each for each in found.values() if each.uid == uid)


def lasting(told: events.Told) -> tuple[object, ...]:
    """What no later answer to the same contribution may say otherwise."""
    return (told.kind, told.reason, told.round, told.share, told.contributors, told.staleness)
