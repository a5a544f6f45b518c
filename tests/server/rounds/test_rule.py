"""When a round closes: the whole table, without a clock."""

from __future__ import annotations

from typing import Any

import pytest

from gradwire.server.engine.shared import OnDeadline, SharedRun, Stale
from gradwire.server.rounds.rule import Action, OpenRound, Owing, decide

WAIT, CLOSE, FAIL = Action.WAIT, Action.CLOSE, Action.FAIL

LOOSE: dict[str, Any] = {"stale": Stale.REJECT}
"""Nobody is waited for but for the quorum."""


def owing(name: str = "slow", step: int = 10, **fields: Any) -> Owing:
    return Owing(name, step, **fields)


def asked(
    now: float, options: dict[str, Any], weights: int | list[float], *missing: Owing, **fields: Any
) -> tuple[Action, str, float | None, set[str]]:
    """Of a round that opened at 100, of a run at step 10."""
    ones = [1.0] * weights if isinstance(weights, int) else weights
    found = decide(now, OpenRound(100.0, 10, ones, missing, **fields), SharedRun(**options))
    assert found.message
    return found.action, found.reason, found.until, set(found.aside)


@pytest.mark.parametrize(
    ("now", "options", "weights", "missing", "fields", "expected"),
    [
        # --- a quorum of so many
        (100, {"quorum": 2, **LOOSE}, 1, [owing()], {}, (WAIT, "", 160.0, set())),
        (100, {"quorum": 2, **LOOSE}, 1, [], {}, (WAIT, "", 160.0, set())),
        (100, {"quorum": 2, **LOOSE}, 2, [], {}, (CLOSE, "QUORUM", None, set())),
        (100, {"quorum": 2, **LOOSE}, 2, [owing()], {}, (CLOSE, "QUORUM", None, set())),
        (100, {"quorum": 2, **LOOSE}, 3, [], {}, (CLOSE, "QUORUM", None, set())),
        # --- all: those who were leased when it opened
        (100, {**LOOSE}, 1, [owing()], {}, (WAIT, "", 160.0, set())),
        (100, {**LOOSE}, 1, [owing(awaited=False)], {}, (CLOSE, "QUORUM", None, set())),
        (100, {**LOOSE}, 1, [owing(aside=True)], {}, (CLOSE, "QUORUM", None, set())),
        (100, {**LOOSE}, 1, [], {}, (CLOSE, "QUORUM", None, set())),
        (100, {**LOOSE, "at_least": 2}, 1, [], {}, (WAIT, "", 160.0, set())),
        # --- weight, alone and beside a number
        (100, {"quorum": 1, "quorum_weight": 5.0, **LOOSE}, [4.9], [], {}, (WAIT, "", 160.0, set())),
        (100, {"quorum": 1, "quorum_weight": 5.0, **LOOSE}, [5.0], [], {}, (CLOSE, "QUORUM", None, set())),
        (100, {"quorum": 2, "quorum_weight": 5.0, **LOOSE}, [9.0], [], {}, (WAIT, "", 160.0, set())),
        # --- the deadline
        (159.9, {"quorum": 2, **LOOSE}, 1, [], {}, (WAIT, "", 160.0, set())),
        (160, {"quorum": 2, **LOOSE}, 1, [], {}, (CLOSE, "DEADLINE", None, set())),
        (160, {"quorum": 3, "at_least": 2, **LOOSE}, 1, [], {}, (FAIL, "NO_QUORUM", None, set())),
        (160, {"quorum": 3, "at_least": 2, **LOOSE}, 2, [], {}, (CLOSE, "DEADLINE", None, set())),
        (160, {"quorum": 2, "on_deadline": OnDeadline.FAIL, **LOOSE}, 1, [], {}, (FAIL, "NO_QUORUM", None, set())),
        (160, {"quorum": 2, "on_deadline": OnDeadline.FAIL, **LOOSE}, 2, [], {}, (CLOSE, "QUORUM", None, set())),
        (160, {**LOOSE}, 1, [owing()], {}, (CLOSE, "DEADLINE", None, {"slow"})),
        (160, {"on_deadline": OnDeadline.FAIL, **LOOSE}, 1, [owing()], {}, (FAIL, "NO_QUORUM", None, {"slow"})),
        (160, {"quorum": 2}, 1, [owing()], {}, (CLOSE, "DEADLINE", None, {"slow"})),
        (105, {"quorum": 2, "deadline_seconds": 5.0, **LOOSE}, 1, [], {}, (CLOSE, "DEADLINE", None, set())),
        # --- a moment for others
        (100, {"quorum": 1, "grace_seconds": 3.0, **LOOSE}, 1, [owing()], {"quorate": 99.0}, (WAIT, "", 102.0, set())),
        (
            102,
            {"quorum": 1, "grace_seconds": 3.0, **LOOSE},
            1,
            [owing()],
            {"quorate": 99.0},
            (CLOSE, "QUORUM", None, set()),
        ),
        (100, {"quorum": 1, "grace_seconds": 3.0, **LOOSE}, 1, [], {"quorate": 99.0}, (CLOSE, "QUORUM", None, set())),
        (100, {"quorum": 1, "grace_seconds": 3.0, **LOOSE}, 1, [owing(aside=True)], {}, (CLOSE, "QUORUM", None, set())),
        # --- pace: closing makes step 11, and who computes from s is then 11 - s old
        (100, {"quorum": 1}, 1, [owing(step=10)], {}, (WAIT, "", 160.0, set())),
        (100, {"quorum": 1, "max_staleness": 1}, 1, [owing(step=10)], {}, (CLOSE, "QUORUM", None, set())),
        (100, {"quorum": 1, "max_staleness": 1}, 1, [owing(step=9)], {}, (WAIT, "", 160.0, set())),
        (100, {"quorum": 1, "max_staleness": 2}, 1, [owing(step=9)], {}, (CLOSE, "QUORUM", None, set())),
        (100, {"quorum": 1}, 1, [owing(awaited=False)], {}, (CLOSE, "QUORUM", None, set())),
        (100, {"quorum": 1}, 1, [owing(aside=True)], {}, (CLOSE, "QUORUM", None, set())),
        (159, {"quorum": 1}, 1, [owing()], {"quorate": 100.0}, (WAIT, "", 160.0, set())),
        (160, {"quorum": 1}, 1, [owing()], {"quorate": 100.0}, (CLOSE, "SET_ASIDE", None, {"slow"})),
        (170, {"quorum": 2}, 2, [owing()], {"quorate": 150.0}, (WAIT, "", 210.0, set())),
        # --- the beginning
        (900, {"start_with": 3, "quorum": 1}, 1, [owing()], {"started": False}, (WAIT, "", None, set())),
    ],
)
def test_the_rule(
    now: float,
    options: dict[str, Any],
    weights: int | list[float],
    missing: list[Owing],
    fields: dict[str, Any],
    expected: tuple[Action, str, float | None, set[str]],
) -> None:
    assert asked(now, options, weights, *missing, **fields) == expected


@pytest.mark.parametrize(
    ("options", "weights", "missing", "message"),
    [
        (
            {"quorum": 4, **LOOSE},
            2,
            [owing("rank-3", heard_seconds=12.4)],
            "2 of 4; waits for rank-3, last heard 12 s ago",
        ),
        ({"quorum": 4, **LOOSE}, 2, [], "2 of 4"),
        ({"quorum": 1, "quorum_weight": 8.0, **LOOSE}, 1, [], "1 of 1, weight 1 of 8"),
        (
            {**LOOSE},
            1,
            [owing(f"rank-{rank}", heard_seconds=rank) for rank in range(1, 6)],
            "1 of 6; waits for rank-5, rank-4, rank-3 and 2 more, last heard 5 s ago",
        ),
        ({"quorum": 1}, 1, [owing("b")], "it has its quorum; b would fall behind, last heard 0 s ago"),
    ],
)
def test_what_is_waited_for_can_be_read(
    options: dict[str, Any], weights: int, missing: list[Owing], message: str
) -> None:
    found = decide(100.0, OpenRound(100.0, 10, [1.0] * weights, missing), SharedRun(**options))
    assert (found.action, found.message) == (WAIT, message)


def test_nobody_waits_longer_than_two_deadlines() -> None:
    options = SharedRun(quorum=2, deadline_seconds=5.0, grace_seconds=2.0)
    last = decide(104.9, OpenRound(100.0, 10, [1.0], [owing()]), options)
    assert (last.action, last.until) == (WAIT, 105.0)
    held = decide(109.8, OpenRound(100.0, 10, [1.0, 1.0], [owing()], quorate=104.9), options)
    assert (held.action, held.until) == (WAIT, 109.9)
    assert decide(109.9, OpenRound(100.0, 10, [1.0, 1.0], [owing()], quorate=104.9), options).action is CLOSE
