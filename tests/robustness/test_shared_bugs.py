"""The harness finds what shared runs can do wrong: with a bug planted in the server it fails, and without it the same
plan passes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.robustness.disk import Loss
from tests.robustness.episode import Episode
from tests.robustness.model import Reference, Violation
from tests.robustness.plan import Life
from tests.robustness.servers import Zygote
from tests.robustness.shared.bugs import SHARED_BUGS
from tests.robustness.shared.moments import Recklessness
from tests.robustness.shared.setting import Setting
from tests.robustness.test_seeded_bugs import ATTEMPTS

SEED = 7
CAREFUL = Recklessness(0.0, 0.0)


@dataclass(frozen=True)
class Case:
    """A plan that shows a bug, and what is said of it."""

    setting: Setting
    lives: tuple[Life, ...]
    said: str
    recklessness: Recklessness = CAREFUL
    answers: int = 15


CASES = {
    "count-a-retry-twice": Case(
        Setting("run", "JOURNAL", SEED, quorum=2, max_staleness=3),
        (Life("kill", 1, 0.5, Loss.NOTHING),),
        "know that they are|nobody was told of round|last accepted contribution is",
        Recklessness(killed=0.005, cut=0.05),
        answers=60,
    ),
    "apply-a-stale-one": Case(
        Setting("run", "JOURNAL", SEED, quorum=1, rejects=True, near=3),
        (Life("kill", 1, 0.3, Loss.NOTHING),),
        "a stale one was applied",
    ),
    "apply-half-a-round-after-a-crash": Case(
        Setting("run", "JOURNAL", SEED),
        (Life("round.before-commit", 3, 0.0, Loss.NOTHING),),
        "nobody was told of round|than the run had then|cannot be brought back",
    ),
    "add-in-order-of-arrival": Case(
        Setting("run", "MEMORY", SEED, quorum=3, cancels=True, near=2),
        (Life("kill", 1, 0.3, Loss.NOTHING),),
        "than the run had then",
    ),
    "mix-two-rounds-in-an-answer": Case(
        Setting("run", "MEMORY", SEED, size=600_000, quorum=1, max_staleness=3),
        (Life("kill", 1, 1.0, Loss.NOTHING),),
        "than the run had then",
    ),
}


def play(case: Case, directory: Path, zygote: Zygote, reference: Reference, bug: str = "") -> Episode:
    with Episode(
        directory,
        SEED,
        zygote,
        reference,
        shapes=[],
        churns=False,
        shared=[case.setting],
        recklessness=case.recklessness,
        shared_answers=case.answers,
        bug=bug,
    ) as episode:
        episode.play(case.lives)
    return episode


def test_each_bug_has_a_plan() -> None:
    assert set(CASES) == set(SHARED_BUGS)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_seeded_bug_is_found(tmp_path: Path, zygote: Zygote, reference: Reference, name: str) -> None:
    found = ""
    for attempt in range(ATTEMPTS):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        try:
            print(play(CASES[name], directory, zygote, reference, bug=name).tally)
        except Violation as violation:
            found = str(violation)
            break
    assert re.search(CASES[name].said, found), found or "nothing was found"


@pytest.mark.timeout(180)
def test_without_the_bugs_the_same_runs_pass(tmp_path: Path, zygote: Zygote, reference: Reference) -> None:
    """All of them at once, through some of the lives."""
    settings = [replace(case.setting, name=name) for name, case in CASES.items()]
    lives = [life for case in CASES.values() for life in case.lives][:3]
    with Episode(
        tmp_path, SEED, zygote, reference, shapes=[], churns=False, shared=settings, shared_answers=40
    ) as episode:
        episode.play(lives)
    assert episode.tally.kills == len(lives)
    assert episode.tally.outcomes["ACCEPTED"] >= 50
