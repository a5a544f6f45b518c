"""How a user says how workers work together, and what of it is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradwire.client import Shared
from gradwire.v1 import run_pb2


def test_defaults_are_the_contract_s() -> None:
    message = Shared().to_message()
    assert message == run_pb2.SharedRun(
        quorum=0,
        start_with=1,
        grace_seconds=0.0,
        deadline_seconds=60.0,
        on_deadline=run_pb2.SharedRun.ON_DEADLINE_APPLY,
        at_least=1,
        max_workers=64,
        lease_seconds=30.0,
        max_staleness=0,
        stale=run_pb2.SharedRun.STALE_PACE,
        combine=run_pb2.SharedRun.COMBINE_MEAN,
        clip=run_pb2.SharedRun.CLIP_CONTRIBUTION,
    )
    assert not message.HasField("quorum_weight")


def test_each_choice_is_said() -> None:
    message = Shared(
        quorum=4,
        quorum_weight=100,
        start_with=2,
        grace_seconds=1,
        deadline_seconds=5,
        on_deadline="fail",
        at_least=3,
        max_workers=8,
        lease_seconds=7,
        max_staleness=9,
        stale="reject",
        combine="sum",
        clip="round",
    ).to_message()
    assert message == run_pb2.SharedRun(
        quorum=4,
        quorum_weight=100.0,
        start_with=2,
        grace_seconds=1.0,
        deadline_seconds=5.0,
        on_deadline=run_pb2.SharedRun.ON_DEADLINE_FAIL,
        at_least=3,
        max_workers=8,
        lease_seconds=7.0,
        max_staleness=9,
        stale=run_pb2.SharedRun.STALE_REJECT,
        combine=run_pb2.SharedRun.COMBINE_SUM,
        clip=run_pb2.SharedRun.CLIP_ROUND,
    )


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        ({"quorum": 0}, ValueError, "quorum is 0; expected a whole number from 1 to max_workers, which is 64"),
        ({"quorum": 65}, ValueError, "quorum is 65; expected a whole number from 1 to max_workers, which is 64"),
        ({"quorum": "some"}, ValueError, "quorum is 'some'; expected a number of workers, or 'all'"),
        ({"quorum": 2.0}, TypeError, "quorum is 2.0; expected a whole number"),
        ({"quorum": True}, TypeError, "quorum is True; expected a whole number"),
        ({"quorum": None}, TypeError, "quorum is None; expected a whole number"),
        ({"start_with": 9, "max_workers": 8}, ValueError, "start_with is 9; .* which is 8"),
        ({"at_least": 0}, ValueError, "at_least is 0; expected a whole number from 1"),
        ({"max_workers": 0}, ValueError, "max_workers is 0; expected a whole number >= 1"),
        ({"max_staleness": -1}, ValueError, "max_staleness is -1; expected a whole number >= 0"),
        ({"quorum_weight": 0}, ValueError, "quorum_weight is 0; expected a finite number > 0"),
        ({"deadline_seconds": 0}, ValueError, "deadline_seconds is 0; expected a finite number > 0"),
        ({"deadline_seconds": None}, TypeError, "deadline_seconds is None; expected a number"),
        ({"deadline_seconds": math.inf}, ValueError, "deadline_seconds is inf; expected a finite number > 0"),
        ({"lease_seconds": math.nan}, ValueError, "lease_seconds is nan; expected a finite number > 0"),
        ({"grace_seconds": -0.1}, ValueError, "grace_seconds is -0.1; expected a finite number >= 0"),
        ({"on_deadline": "drop"}, ValueError, "on_deadline is 'drop'; expected one of 'apply', 'fail'"),
        ({"stale": None}, ValueError, "stale is None; expected one of 'pace', 'reject'"),
        ({"combine": "median"}, ValueError, "combine is 'median'; expected one of 'mean', 'sum'"),
        ({"clip": ["round"]}, ValueError, r"clip is \['round'\]; expected one of 'contribution', 'round'"),
    ],
)
def test_what_is_no_choice_is_refused_by_name(arguments: dict[str, Any], error: type, expected: str) -> None:
    with pytest.raises(error, match=f"^{expected}"):
        Shared(**arguments)


def test_numbers_have_names() -> None:
    with pytest.raises(TypeError):
        Shared(4)  # type: ignore[call-arg]
