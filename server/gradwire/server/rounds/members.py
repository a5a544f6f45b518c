"""Who works on a shared run: attached, or leased for a while after the stream has broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gradwire.server.engine.block import Kind
from gradwire.server.engine.shared import MAX_WORKERS
from gradwire.server.engine.workers import Holder


@dataclass(eq=False)
class Member:
    """A worker, as this server has known it since its start. Times are seconds of the event loop's clock."""

    worker_id: str
    heard: float
    """When anything came from it last."""
    step: int = 0
    """Of the newest parameters that it has."""
    session: str = ""
    """See ``gradwire.v1.Attach.session``; of the last stream."""
    hold: Holder | None = None
    """Its stream's; None: it has none now."""
    left: float | None = None
    """When its stream broke; None: it has one, or has left and is leased no more."""
    aside: bool = False
    """It has kept a round waiting for too long, and is not waited for until it contributes or attaches."""
    outcomes: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    weight: float = 0.0
    """Of its accepted contributions that added something."""


class Members:
    """By id.

    Args:
        lease_seconds: how long a worker whose stream has broken is waited for.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._members: dict[str, Member] = {}
        self.total_weight = 0.0
        """Of all accepted contributions, by those too who are not known any more."""

    def __iter__(self) -> Iterator[Member]:
        """By id."""
        return (self._members[name] for name in sorted(self._members))

    def get(self, worker_id: str) -> Member | None:
        """None: not known since the server was started."""
        return self._members.get(worker_id)

    def make(self, worker_id: str, now: float) -> Member:
        """The member of this id, a new one perhaps. Those that have left longest ago are not kept beyond a bound."""
        member = self._members.get(worker_id)
        if member is None:
            member = self._members[worker_id] = Member(worker_id, now)
        if len(self._members) > MAX_WORKERS:
            gone = [each for each in self._members.values() if not self.leased(each, now) and each is not member]
            if gone:
                del self._members[min(gone, key=lambda each: each.heard).worker_id]
        return member

    def leased(self, member: Member, now: float) -> bool:
        """Whether it is waited for."""
        return member.hold is not None or (member.left is not None and now < member.left + self._lease_seconds)

    def all_leased(self, now: float) -> list[Member]:
        """Those who are waited for, by id."""
        return [member for member in self if self.leased(member, now)]

    @property
    def holders(self) -> list[Holder]:
        """Of those who have a stream, by id."""
        return [member.hold for member in self if member.hold is not None]

    @property
    def attached(self) -> int:
        """How many have a stream. Any thread may ask."""
        return sum(member.hold is not None for member in list(self._members.values()))

    def next_lease_end(self, now: float) -> float | None:
        """When the next one is waited for no more who has no stream; None: there is none such."""
        ends = [
            member.left + self._lease_seconds
            for member in self._members.values()
            if member.hold is None and member.left is not None
        ]
        return min((end for end in ends if end > now), default=None)
