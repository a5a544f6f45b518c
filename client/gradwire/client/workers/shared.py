"""How the workers of a shared run work together."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from gradwire.client.optimizers.numbers import number
from gradwire.v1 import run_pb2

_SharedRun = run_pb2.SharedRun

_ON_DEADLINE = {"apply": _SharedRun.ON_DEADLINE_APPLY, "fail": _SharedRun.ON_DEADLINE_FAIL}
_STALE = {"pace": _SharedRun.STALE_PACE, "reject": _SharedRun.STALE_REJECT}
_COMBINE = {"mean": _SharedRun.COMBINE_MEAN, "sum": _SharedRun.COMBINE_SUM}
_CLIP = {"contribution": _SharedRun.CLIP_CONTRIBUTION, "round": _SharedRun.CLIP_ROUND}


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Many workers train a run together, in rounds: each step of the run is one combined gradient of theirs.

    Three numbers that are easily mixed up stay apart: with how many workers the run begins (``start_with``), for how
    many a round waits (``quorum``), and with how few it makes do at its deadline (``at_least``). Asynchronous workers:
    ``Shared(quorum=1, max_staleness=4)``, say.

    Raises ValueError or TypeError for a malformed argument.
    """

    quorum: int | str = "all"
    """Contributions that close a round; ``"all"``: one of each worker that was there when it opened and still is."""
    quorum_weight: float | None = None
    """Total weight that closes a round, > 0; both quorums must hold then. None: any."""
    start_with: int = 1
    """Workers that must have been there at a time before the first round closes."""
    grace_seconds: float = 0.0
    """How long a round that has its quorum waits for others."""
    deadline_seconds: float = 60.0
    """How long a round waits for its quorum, and one that has it for those who would fall behind."""
    on_deadline: str = "apply"
    """What becomes of a round without a quorum then. ``"apply"``: it closes with what has arrived, if that is
    ``at_least``; ``"fail"``: it is dropped."""
    at_least: int = 1
    """Contributions without which a round is dropped at its deadline."""
    max_workers: int = 64
    """Workers that may be there at a time."""
    lease_seconds: float = 30.0
    """How long a worker whose connection has broken is waited for. One that closes its run leaves at once."""
    max_staleness: int = 0
    """How many steps a contribution may be older than the parameters that it is applied to."""
    stale: str = "pace"
    """Where that would be exceeded. ``"pace"``: a round waits, up to ``deadline_seconds``, rather than leave a worker
    behind; ``"reject"``: it closes, and what the worker sends then is not applied."""
    combine: str = "mean"
    """``"mean"``: by weights, of each tensor over the contributions that have it; ``"sum"``: by weights."""
    clip: str = "contribution"
    """What the run's ``clip_value`` and ``clip_norm`` clip: each ``"contribution"``, or the combined gradient of the
    ``"round"``."""

    def __post_init__(self) -> None:
        most = _count("max_workers", self.max_workers, 1)
        if isinstance(self.quorum, str):
            if self.quorum != "all":
                raise ValueError(f"quorum is {self.quorum!r}; expected a number of workers, or 'all'")
        else:
            _count("quorum", self.quorum, 1, most)
        _count("start_with", self.start_with, 1, most)
        _count("at_least", self.at_least, 1, most)
        _count("max_staleness", self.max_staleness, 0)
        for name in ("quorum_weight", "deadline_seconds", "lease_seconds"):
            value = getattr(self, name)
            if not (value is None and name == "quorum_weight"):
                _finite(name, value, "> 0", above=0.0)
        if _finite("grace_seconds", self.grace_seconds, ">= 0") < 0:
            raise ValueError(f"grace_seconds is {self.grace_seconds!r}; expected a finite number >= 0")
        for name, choices in (
            ("on_deadline", _ON_DEADLINE),
            ("stale", _STALE),
            ("combine", _COMBINE),
            ("clip", _CLIP),
        ):
            found = getattr(self, name)
            if not isinstance(found, str) or found not in choices:
                raise ValueError(f"{name} is {found!r}; expected one of {', '.join(map(repr, choices))}")

    def to_message(self) -> run_pb2.SharedRun:
        """This choice in the contract's words."""
        return run_pb2.SharedRun(
            quorum=0 if isinstance(self.quorum, str) else self.quorum,
            quorum_weight=None if self.quorum_weight is None else number("quorum_weight", self.quorum_weight),
            start_with=self.start_with,
            grace_seconds=number("grace_seconds", self.grace_seconds),
            deadline_seconds=number("deadline_seconds", self.deadline_seconds),
            on_deadline=_ON_DEADLINE[self.on_deadline],
            at_least=self.at_least,
            max_workers=self.max_workers,
            lease_seconds=number("lease_seconds", self.lease_seconds),
            max_staleness=self.max_staleness,
            stale=_STALE[self.stale],
            combine=_COMBINE[self.combine],
            clip=_CLIP[self.clip],
        )


_MOST = 2**32 - 1
"""What the contract's counts can say."""


def _count(name: str, value: Any, least: int, most: int = _MOST) -> int:
    """Raises TypeError, ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; expected a whole number")
    if not least <= value <= most:
        bound = f">= {least}" if most == _MOST else f"from {least} to max_workers, which is {most}"
        raise ValueError(f"{name} is {value}; expected a whole number {bound}")
    return value


def _finite(name: str, value: Any, expected: str, above: float | None = None) -> float:
    """Raises TypeError, ValueError."""
    found = number(name, value)
    if not isfinite(found) or (above is not None and found <= above):
        raise ValueError(f"{name} is {value!r}; expected a finite number {expected}")
    return found
