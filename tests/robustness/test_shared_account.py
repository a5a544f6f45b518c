"""What workers are told of a shared run can be true, or not: each lie is found from what they have noted alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.robustness.model import Violation
from tests.robustness.shared.account import Account, check_each
from tests.robustness.shared.connection import digest_of
from tests.robustness.shared.encodings import INT8, Held
from tests.robustness.shared.events import Attached, Event, Failed, Gone, Told
from tests.robustness.shared.past import Lives, Write
from tests.robustness.shared.replay import Replay, combined
from tests.robustness.shared.setting import Sent, Setting
from tests.robustness.shared.verify import Found, Verification

SETTING = Setting("run", "JOURNAL", 1, workers=2, quorum=2)
UID = "uid"


def attached(life: int = 1, *, accepted: int = 0, step: int = 0, epoch: int = 0) -> Attached:
    return Attached(f"life-{life}", UID, epoch, step, accepted, accepted, 0)


def sent(key: int, base_step: int | None = None, *, seed: int = 0, kind: str = "plain") -> Sent:
    return Sent(key, key, seed or key, kind, 1.0, True, key - 1 if base_step is None else base_step, 0)


def accepted(key: int, digest: str = "", *, life: int = 1) -> Told:
    """Of a round of two, with the number of its key."""
    return Told(key, f"life-{life}", UID, "ACCEPTED", "QUORUM", key, 0.5, 2, 2.0, 0, key, 0, digest, False, False)


def refused(key: int, kind: str, reason: str, *, staleness: int = 0, step: int = 0) -> Told:
    return Told(key, "life-1", UID, kind, reason, 0, 0.0, 1, 0.0, staleness, step, 0, "", False, False)


def contributions(*rounds: int) -> list[list[Sent]]:
    """Those of both workers to rounds with these numbers."""
    return [[sent(number, seed=10 * number + rank) for rank in range(2)] for number in rounds]


def two_rounds() -> tuple[list[Event], list[Event], Replay]:
    """What both workers have noted, and what the run is then."""
    replay, histories = Replay(SETTING), ([attached()], [attached()])
    for number, parts in enumerate(contributions(1, 2), 1):
        replay.apply(parts)
        for history, part in zip(histories, parts, strict=True):
            history += [part, accepted(number, replay.digest)]  # type: ignore[list-item]
    return list(histories[0]), list(histories[1]), replay


def verify(
    first: Sequence[Event],
    second: Sequence[Event],
    replay: Replay | None = None,
    *,
    setting: Setting = SETTING,
    lives: Lives | None = None,
    writes: Sequence[Write] = (),
) -> Verification:
    lives = lives or Lives({1: 0})
    found = None if replay is None else Found(max(lives.bases), replay.keep(), {})
    return Verification(account(first, second, setting, lives, writes), found)


def account(
    first: Sequence[Event],
    second: Sequence[Event],
    setting: Setting = SETTING,
    lives: Lives | None = None,
    writes: Sequence[Write] = (),
) -> Account:
    return Account(setting, UID, {"rank-0": first, "rank-1": second}, lives or Lives({1: 0}), writes)


def test_what_is_true_passes() -> None:
    first, second, replay = two_rounds()
    assert verify(first, second, replay).compared == 4


def test_a_write_is_part_of_the_history() -> None:
    first, second, replay = two_rounds()
    data = np.ones(SETTING.elements, np.float32).tobytes()
    replay.write(data)
    writes = [Write(1, 2, 1, data)]
    verify(first, second, replay, writes=writes)
    with pytest.raises(Violation, match="other parameters than the run had"):
        verify([*first, replace(accepted(2, replay.digest), step=2, epoch=0, repeated=True)], second, writes=writes)


def test_a_round_of_which_not_all_know() -> None:
    first, second, replay = two_rounds()
    with pytest.raises(Violation, match=r"round 2 has 2 contributors, and only \['rank-0'\] know"):
        verify(first, second[:-1], replay)
    with pytest.raises(Violation, match="nobody was told of round 2"):
        verify(first[:-1], second[:-1], replay)


def test_a_contribution_that_counts_twice() -> None:
    first, second, _ = two_rounds()
    with pytest.raises(Violation, match="has more than one outcome"):
        verify([*first, replace(accepted(2), round=3, repeated=True)], second)
    with pytest.raises(Violation, match="is twice in round 2"):
        verify([*first, sent(3, 1), replace(accepted(3), round=2)], second)


def test_more_contributors_than_a_round_had() -> None:
    first, second, _ = two_rounds()
    with pytest.raises(Violation, match="were told different things"):
        verify([*first[:-1], replace(accepted(2), contributors=1)], second)
    with pytest.raises(Violation, match="closed with 1 contributors, QUORUM"):
        verify([*first[:-1], replace(accepted(2), contributors=1)], second[:-1])
    with pytest.raises(Violation, match="a total weight of 3"):
        verify(
            [*first[:-1], replace(accepted(2), total_weight=3.0)],
            [*second[:-1], replace(accepted(2), total_weight=3.0)],
        )
    with pytest.raises(Violation, match="the share of rank-0 is"):
        verify([*first[:-1], replace(accepted(2), share=0.4)], second)


def test_a_stale_one_that_was_applied() -> None:
    first, second, _ = two_rounds()
    with pytest.raises(Violation, match="a stale one was applied"):
        verify([*first[:-2], sent(2, 0), accepted(2)], second)
    with pytest.raises(Violation, match="a stale one was applied"):
        verify([*first[:-2], sent(2, 0), replace(accepted(2), staleness=1)], second)


@pytest.mark.parametrize(
    "told",
    [
        refused(1, "STALE", "TOO_STALE", staleness=1, step=0),
        refused(1, "STALE", "TOO_STALE", staleness=0, step=5),
        refused(1, "STALE", "HISTORY_CHANGED"),
        refused(1, "REFUSED", "NON_FINITE_GRADIENT"),
        refused(1, "DROPPED", "NO_QUORUM"),
        refused(1, "DROPPED", "ROUND_NOT_FINITE"),
        replace(accepted(1), skipped=True),
    ],
    ids=lambda told: f"{told.kind} {told.reason}",
)
def test_a_reason_that_is_not_true(told: Told) -> None:
    with pytest.raises(Violation, match=r"is not true|was accepted, skipped"):
        verify([attached(), sent(1), told], [attached()])


def test_reasons_that_are_true() -> None:
    first, second, replay = two_rounds()
    late = replace(refused(3, "STALE", "TOO_STALE", staleness=2, step=2), digest=replay.digest)
    verify([*first, sent(3, 0), late], second)
    initial = Replay(SETTING).digest
    not_finite = replace(refused(1, "REFUSED", "NON_FINITE_GRADIENT"), digest=initial)
    verify([attached(), sent(1, kind="nan"), not_finite], [attached()])
    dropped = replace(refused(1, "DROPPED", "NO_QUORUM"), digest=initial)
    verify([attached(), sent(1), dropped], [attached()], setting=replace(SETTING, fails=True))


def test_other_values_than_the_rounds_make() -> None:
    first, second, replay = two_rounds()
    replay.write(bytes(4 * SETTING.elements))
    with pytest.raises(Violation, match="the server holds other params"):
        verify(first, second, replay)


@pytest.mark.parametrize(
    "choice",
    [
        {"clip_value": 0.5},
        {"clip_norm": 0.5},
        {"clip_value": 0.5, "clips_rounds": True},
        {"clip_norm": 0.5, "clips_rounds": True},
        {"gradients": "BFLOAT16"},
        {"gradients": INT8},
        {"answers": "BFLOAT16"},
    ],
)
def test_what_a_run_does_with_its_numbers_is_part_of_them(choice: dict[str, Any]) -> None:
    first, second, replay = two_rounds()
    with pytest.raises(Violation, match="an answer of step 1, epoch 0, has other parameters"):
        verify(first, second, replay, setting=replace(SETTING, **choice))


def test_a_learning_rate_holds_from_its_round_on() -> None:
    first, second, _ = two_rounds()
    replay = Replay(SETTING)
    parts = contributions(1, 2)
    changed = [replace(parts[0][0], lr=0.3), parts[0][1]]
    replay.apply(changed)
    first[1:3] = [changed[0], accepted(1, replay.digest)]
    second[2] = accepted(1, replay.digest)
    replay.apply(parts[1])
    first[4] = second[4] = accepted(2, replay.digest)
    assert verify(first, second, replay).compared == 4
    kept = replay.keep()
    with pytest.raises(Violation, match="the server holds other lr"):
        Verification(account(first, second), Found(1, replace(kept, lr=0.05), {}))


def test_a_round_that_is_not_finite_and_was_applied() -> None:
    setting = replace(SETTING, sums=True, overflows=True)
    history: list[Event] = [attached(), sent(1, kind="huge"), accepted(1)]
    with pytest.raises(Violation, match="round 1 was applied, and its gradient is not finite"):
        verify(history, history, setting=setting)
    dropped = replace(refused(1, "DROPPED", "ROUND_NOT_FINITE"), digest=Replay(setting).digest)
    verify([*history[:2], dropped], [attached()], setting=setting)
    with pytest.raises(Violation, match="what is not true"):
        verify([attached(), sent(1), dropped], [attached()])


def test_a_round_without_the_weight_that_it_should_have() -> None:
    first, second, _ = two_rounds()
    with pytest.raises(Violation, match="round 1 closed with a weight of 2"):
        verify(first, second, setting=replace(SETTING, quorum_weight=2.5))


def test_an_answer_of_differences_adds_to_what_the_worker_holds() -> None:
    setting = replace(SETTING, answers=INT8)
    first, second, replay = two_rounds()
    one = Replay(setting)
    one.apply(contributions(1)[0])
    held = Held(setting)
    held.values[:] = one.params
    held.advance(replay.params)
    told = replace(accepted(2, digest_of(held.values.tobytes())), differs=True)
    assert verify([*first[:-1], told], second, replay, setting=setting).compared == 4
    with pytest.raises(Violation, match="an answer of step 2, epoch 0, has other parameters"):
        verify([*first[:-1], replace(told, digest="")], second, replay, setting=setting)


def test_an_answer_that_is_mixed_of_two_rounds() -> None:
    first, second, _ = two_rounds()
    with pytest.raises(Violation, match="an answer of step 2, epoch 0, has other parameters"):
        verify([*first[:-1], accepted(2, "mixed")], second)


def test_a_journal_loses_nothing() -> None:
    first, second, _ = two_rounds()
    with pytest.raises(Violation, match="acknowledged steps are lost"):
        verify(first, second, lives=Lives({1: 0, 2: 1}))


def test_an_epoch_that_nobody_has_begun() -> None:
    first, second, _ = two_rounds()
    with pytest.raises(Violation, match="neither has anybody written nor was anything lost"):
        verify([*first, attached(accepted=2, step=2, epoch=1)], second)


def test_lost_steps_are_told() -> None:
    """By the epoch, and by the last accepted sequence of each attachment."""
    setting, lives = replace(SETTING, durability="SNAPSHOT"), Lives({1: 0, 2: 1})
    first, second, _ = two_rounds()
    after = attached(2, accepted=1, step=1, epoch=5)
    verify([*first, after], [*second, after], setting=setting, lives=lives)
    with pytest.raises(Violation, match="nobody is told"):
        verify([*first, replace(after, epoch=0)], [*second, after], setting=setting, lives=lives)
    with pytest.raises(Violation, match="its last accepted contribution is 2"):
        verify([*first, replace(after, accepted=2)], [*second, after], setting=setting, lives=lives)
    with pytest.raises(Violation, match="acknowledged steps are lost"):
        verify([*first, after], [*second, after], setting=setting, lives=replace(lives, orderly={1}))


def test_what_a_worker_may_never_see() -> None:
    check_each(SETTING, {"rank-0": [Failed("DRAINING", "")]})
    check_each(replace(SETTING, durability="MEMORY"), {"rank-0": [Gone(UID)]})
    with pytest.raises(Violation, match="is gone"):
        check_each(SETTING, {"rank-0": [Gone(UID)]})
    with pytest.raises(Violation, match="SEQUENCE_MISMATCH"):
        check_each(SETTING, {"rank-0": [Failed("SEQUENCE_MISMATCH", "")]})


def test_the_order_of_workers_shows_in_the_sum() -> None:
    """Where it is adversarial: that is what `Setting.cancels` is for."""
    large, small = np.full(4, 2.0**40, np.float32), np.array([1.1, 0.3, 1e-3, 7.0], np.float32)
    in_order = combined([(1.0, large), (1.0, -large), (1.0, small)], mean=False)
    assert np.array_equal(in_order, small)
    assert not np.array_equal(combined([(1.0, large), (1.0, small), (1.0, -large)], mean=False), in_order)
