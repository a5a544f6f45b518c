"""The harness finds what it is for: with a bug planted in the server it fails, and without it the same plan passes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.robustness.disk import Loss
from tests.robustness.episode import FLAGS, Episode
from tests.robustness.faulty_server import BUGS
from tests.robustness.model import Reference, Shape, Violation
from tests.robustness.plan import Life, Trouble
from tests.robustness.servers import Zygote

SEED = 5
ATTEMPTS = 3
"""A cut may come at a moment when it does no harm, a kill when there is nothing to be damaged."""
NO_SNAPSHOTS = ("--snapshot-interval", "1000")


@dataclass(frozen=True)
class Case:
    """A plan that shows a bug, and what is said of it."""

    lives: tuple[Life, ...]
    said: str
    shapes: tuple[Shape, ...] = (Shape("run", "JOURNAL", SEED),)
    flags: tuple[str, ...] = field(default=FLAGS)


def cuts(*seconds: float) -> tuple[Trouble, ...]:
    return tuple(Trouble("cut", at, 0.0, True, 0) for at in seconds)


CASES = {
    "acknowledge-before-fsync": Case(
        (Life("kill", 1, 0.3, Loss.UNFLUSHED), Life("kill", 1, 0.3, Loss.UNFLUSHED)),
        "is gone|acknowledged steps are lost",
    ),
    "no-deduplication": Case((Life("reply.before", 4, 0.0, Loss.NOTHING),), "applied twice"),
    "record-snapshot-before-fsync": Case(
        (Life("snapshot.after-record", 2, 0.0, Loss.UNFLUSHED),) * 2, "is gone|are lost|is damaged"
    ),
    "no-hash-chain": Case(
        # Before the first write of this seed: that makes a snapshot, after which there is no block to be damaged.
        (Life("kill", 1, 0.15, Loss.NOTHING, damage="sign"),),
        "the server holds",
        flags=NO_SNAPSHOTS,
    ),
    "drop-journal-before-snapshot": Case(
        (Life("snapshot.before-record", 2, 0.0, Loss.NOTHING),), "acknowledged steps are lost"
    ),
    "free-lock-on-cancel": Case(
        (
            Life(
                "kill",
                1,
                2.5,
                Loss.NOTHING,
                troubles=cuts(0.6, 1.2, 1.8, 2.4),
                failpoints="commit.before-apply=sleep:0.5",
            ),
        )
        * 3,
        # Two commits at once: seen in the state, in what is answered, in rows whose order or receipts are not true, or
        # by the device, from under which one of them has taken what the other one works on.
        "the server holds|applied twice|was answered with step|computes other bits|are lost|its device failed",
        # So large that what its commits do after the journal leaves the event loop.
        shapes=(Shape("run", "JOURNAL", SEED, size=80_000, blocks=(8,), whole=0.0),),
    ),
}


def test_each_bug_has_a_plan() -> None:
    assert set(CASES) == set(BUGS)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_seeded_bug_is_found(tmp_path: Path, zygote: Zygote, reference: Reference, name: str) -> None:
    case = CASES[name]
    found = ""
    for attempt in range(ATTEMPTS):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        with Episode(
            directory, SEED, zygote, reference, shapes=case.shapes, churns=False, bug=name, flags=case.flags
        ) as episode:
            try:
                episode.play(case.lives)
            except Violation as violation:
                found = str(violation)
                break
            print(episode.tally, episode.trainers[0].story, (directory / "log").read_text(), sep="\n")
    assert re.search(case.said, found), found or "nothing was found"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", sorted(CASES))
def test_without_the_bug_the_same_plan_passes(tmp_path: Path, zygote: Zygote, reference: Reference, name: str) -> None:
    case = CASES[name]
    with Episode(tmp_path, SEED, zygote, reference, shapes=case.shapes, churns=False, flags=case.flags) as episode:
        episode.play(case.lives)
    assert episode.tally.kills == len(case.lives)
