"""When a round closes: one pure function of what is known, so that a table can say all that it does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from gradwire.server.engine.shared import OnDeadline, SharedRun, Stale

_MOST_NAMES = 3


class Action(Enum):
    """What becomes of an open round."""

    WAIT = "wait"
    CLOSE = "close"
    FAIL = "fail"


@dataclass(frozen=True)
class Owing:
    """A leased worker of which the round has no contribution."""

    worker_id: str
    step: int
    """Of the newest parameters that it has: what its next gradient will have been computed from."""
    heard_seconds: float = 0.0
    """How long ago anything came from it."""
    awaited: bool = True
    """Whether it was leased when the round opened. One that came later counts, and is not waited for."""
    aside: bool = False
    """It has kept a round waiting for too long, and is not waited for."""


@dataclass(frozen=True)
class OpenRound:
    """All that the rule looks at. Times are seconds of one clock."""

    opened: float
    """When its first contribution came, or the run had as many workers as it begins with, whichever was later."""
    step: int
    """Of the parameters that it would be applied to."""
    weights: Sequence[float]
    """Of its contributions."""
    owing: Sequence[Owing]
    quorate: float | None = None
    """When it had its quorum; None: not yet."""
    started: bool = True
    """Whether the run has had as many workers at a time as it begins with."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a round."""

    action: Action
    reason: str
    """As a word; see ``gradwire.v1.Outcome.reason``. Empty: it waits."""
    message: str
    """What is waited for, or why it has ended, for people."""
    until: float | None = None
    """When to ask again if nothing happens before; None: then nothing will have changed."""
    aside: frozenset[str] = frozenset()
    """Workers that are not waited for any more."""


def decide(now: float, round: OpenRound, options: SharedRun) -> Decision:
    """What becomes of a round that has a contribution.

    It closes when it has its quorum, a moment after that for others, and not while that would leave a worker behind
    who is still at work. Two times bound this: the deadline for the quorum, and as long again for those behind.

    Args:
        now: by the clock of the round's times.
    """
    if not round.started:
        here = len(round.weights) + len(round.owing)
        return _wait(f"the run begins with {options.start_with} workers, and {here} are here")
    deadline = round.opened + options.deadline_seconds
    behind = _behind(round, options)
    if not has_quorum(round, options):
        if now < deadline:
            return _wait(_wants(round, options), deadline)
        enough = len(round.weights) >= options.at_least
        # Who has kept all waiting does so once: the next round of all is one without it.
        missing = _waited_for(round) if options.quorum is None else []
        wants, late = _wants(round, options), frozenset(owing.worker_id for owing in missing)
        if options.on_deadline is OnDeadline.FAIL or not enough:
            return Decision(Action.FAIL, "NO_QUORUM", f"no quorum at the deadline: {wants}", aside=late)
        late |= {owing.worker_id for owing in behind}
        return Decision(Action.CLOSE, "DEADLINE", f"closed at its deadline: {wants}", aside=late)
    quorate = now if round.quorate is None else round.quorate
    grace = quorate + options.grace_seconds
    if now < grace and (late_ones := [owing for owing in round.owing if not owing.aside]):
        return _wait(f"it has its quorum, and leaves {_names(late_ones)} a moment", grace)
    hold = quorate + options.deadline_seconds
    if behind and now < hold:
        return _wait(f"it has its quorum; {_names(behind)} would fall behind, {_heard(behind)}", hold)
    if behind:
        reason = f"closed without {_names(behind)}: set aside, after {options.deadline_seconds:g} s with a quorum"
        return Decision(Action.CLOSE, "SET_ASIDE", reason, aside=frozenset(owing.worker_id for owing in behind))
    return Decision(Action.CLOSE, "QUORUM", "it has its quorum")


def has_quorum(round: OpenRound, options: SharedRun) -> bool:
    """Whether what has come is what the round waits for."""
    if options.quorum is not None:
        enough = len(round.weights) >= options.quorum
    else:
        enough = not _waited_for(round) and len(round.weights) >= options.at_least
    return enough and (options.quorum_weight is None or sum(round.weights) >= options.quorum_weight)


def _waited_for(round: OpenRound) -> list[Owing]:
    return [owing for owing in round.owing if owing.awaited and not owing.aside]


def _behind(round: OpenRound, options: SharedRun) -> list[Owing]:
    """Those whose next contribution would be too old if the round closed now: it would find the run a step further."""
    if options.stale is not Stale.PACE:
        return []
    return [owing for owing in _waited_for(round) if round.step + 1 - owing.step > options.max_staleness]


def _wait(message: str, until: float | None = None) -> Decision:
    return Decision(Action.WAIT, "", message, until)


def _wants(round: OpenRound, options: SharedRun) -> str:
    """How many of how many, and who is missing."""
    missing = _waited_for(round)
    there = len(round.weights)
    text = f"{there} of {options.quorum or max(there + len(missing), options.at_least)}"
    if options.quorum_weight is not None:
        text += f", weight {sum(round.weights):g} of {options.quorum_weight:g}"
    return text + (f"; waits for {_names(missing)}, {_heard(missing)}" if missing else "")


def _heard(missing: Iterable[Owing]) -> str:
    return f"last heard {max(owing.heard_seconds for owing in missing):.0f} s ago"


def _names(missing: Sequence[Owing]) -> str:
    """The one that has been silent for longest comes first."""
    names = [owing.worker_id for owing in sorted(missing, key=lambda owing: -owing.heard_seconds)]
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
