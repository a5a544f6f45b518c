"""How the workers of a shared run work together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import isfinite
from typing import Protocol

from gradwire.server.engine.activity import Attached
from gradwire.wire.errors import GradwireError, InvalidSpec

MAX_WORKERS = 1024
"""Workers whose last result a run remembers; the one that has been away longest is forgotten first. So no more of them
may be leased at a time."""


class Workers(Protocol):
    """Those who work on a shared run, as far as the run itself must know; `rounds.rounds.Rounds` is the rest of it."""

    @property
    def attached(self) -> int:
        """How many have a stream now."""

    @property
    def holders(self) -> Sequence[Attached]:
        """Of those."""

    @property
    def overdue_seconds(self) -> float:
        """For how long a round has been past its deadline that is open still, or about to be applied; 0: none is. Any
        thread may ask."""

    def end(self, error: GradwireError) -> None:
        """The history of the run has changed, or the run has ended: drops the open round, and ends all streams with
        ``error``. May be called from any thread, under the run's lock."""

    def freeze(self) -> None:
        """The server is about to stop: no round closes any more."""


class OnDeadline(IntEnum):
    """What becomes of a round that its deadline finds without a quorum."""

    APPLY = 1
    """It closes with what has arrived, if that is enough."""
    FAIL = 2
    """It is dropped, and its contributors are told so."""


class Stale(IntEnum):
    """What happens where closing a round would leave a worker too far behind."""

    PACE = 1
    """The round waits for it before it closes."""
    REJECT = 2
    """It closes; what the worker sends then is answered as stale."""


class Combine(IntEnum):
    """What a round's contributions become."""

    MEAN = 1
    SUM = 2


class Clip(IntEnum):
    """What is clipped where a run clips."""

    CONTRIBUTION = 1
    """Each contribution, before weights."""
    ROUND = 2
    """The combined gradient."""


@dataclass(frozen=True, kw_only=True)
class SharedRun:
    """See ``gradwire.v1.SharedRun``. Three numbers that are easily mixed up stay apart: how many a run begins with
    (``start_with``), how many a round waits for (``quorum``), and how few it makes do with at its deadline
    (``at_least``). Raises InvalidSpec."""

    quorum: int | None = None
    """Contributions that close a round. None: one of each worker that was leased when it opened and still is."""
    quorum_weight: float | None = None
    """Total weight that closes a round; with both quorums both must hold. None: any."""
    start_with: int = 1
    """Workers that must have been leased at a time before the first round closes."""
    grace_seconds: float = 0.0
    """How long a round that has its quorum waits for others."""
    deadline_seconds: float = 60.0
    """How long a round waits for its quorum, and one that has it for those who would fall behind."""
    on_deadline: OnDeadline = OnDeadline.APPLY
    at_least: int = 1
    """Contributions without which a round is dropped at its deadline."""
    max_workers: int = 64
    """Workers that may be leased at a time."""
    lease_seconds: float = 30.0
    """How long a worker whose stream has broken is waited for."""
    max_staleness: int = 0
    """How many steps a contribution may be older than the parameters that it is applied to."""
    stale: Stale = Stale.PACE
    combine: Combine = Combine.MEAN
    clip: Clip = Clip.CONTRIBUTION

    def __post_init__(self) -> None:
        if not 1 <= self.max_workers <= MAX_WORKERS:
            raise InvalidSpec(f"shared: max_workers is {self.max_workers}; expected 1 to {MAX_WORKERS}")
        for name in ("quorum", "start_with", "at_least"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= self.max_workers:
                raise InvalidSpec(f"shared: {name} is {value}; expected 1 to max_workers, which is {self.max_workers}")
        for name in ("quorum_weight", "deadline_seconds", "lease_seconds"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise InvalidSpec(f"shared: {name} is {value}; expected a finite number > 0")
        if not (isfinite(self.grace_seconds) and self.grace_seconds >= 0):
            raise InvalidSpec(f"shared: grace_seconds is {self.grace_seconds}; expected a finite number >= 0")
        if self.max_staleness < 0:
            raise InvalidSpec(f"shared: max_staleness is {self.max_staleness}; expected a number >= 0")
