"""Never lost, never doubled, never torn: servers that are killed under traffic, wherever it can hurt.

Each test prints the line that plays it again. The seeds fix what is done and in which order; threads and the network
decide the rest, so that a failure may need a few attempts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness.damage import KINDS
from tests.robustness.disk import Loss
from tests.robustness.episode import Episode
from tests.robustness.model import Reference, Shape, TooLittleTraffic
from tests.robustness.plan import FLUSHES, Life, at_points, at_random, failpoints, points_without_rounds, with_damage
from tests.robustness.servers import Zygote
from tests.robustness.tally import Tally

PARTS = 6
TIMES = 3
POINTS = [*points_without_rounds(), *FLUSHES]
RANDOM_LIVES = 12


def play(
    lives: list[Life], seed: int, directory: Path, zygote: Zygote, reference: Reference, rivalry: bool = False
) -> Tally:
    with Episode(directory, seed, zygote, reference, rivalry=rivalry) as episode:
        episode.play(lives)
    tally = episode.tally
    assert tally.acknowledged >= 5 * len(lives), f"too little traffic: {tally}"
    assert tally.by_lane >= len(lives), f"too little by lanes: {tally}"
    assert tally.checks
    return tally


def test_the_points_are_those_that_the_issue_names() -> None:
    """Around staging, commit, insert, flush, snapshot, rename, prune, reply."""
    for word in ("stage.", "commit.", "insert", "fsync", "snapshot.", "rename", "prune", "reply."):
        assert any(word in point for point in failpoints()), word


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_every_point(part: int, tmp_path: Path, zygote: Zygote, reference: Reference) -> None:
    points = POINTS[part::PARTS]
    print(f"again: python -m tests.robustness --points {','.join(points)} --seed {part}")
    tally = play(at_points(part, points, TIMES), part, tmp_path, zygote, reference)
    assert {point: tally.ends[point] for point in points} == dict.fromkeys(points, TIMES)
    assert tally.kills == len(points) * TIMES
    assert set(tally.losses) == {loss.value for loss in Loss}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [101, 102])
def test_killed_at_random(seed: int, tmp_path: Path, zygote: Zygote, reference: Reference) -> None:
    """Connections are cut, stalled, delayed and half closed, servers are stopped, disks are full."""
    print(f"again: python -m tests.robustness --lives {RANDOM_LIVES} --troubles 2 --seed {seed}")
    tally = play(at_random(seed, RANDOM_LIVES), seed, tmp_path, zygote, reference, rivalry=True)
    assert tally.kills >= RANDOM_LIVES // 2
    assert tally.troubles


@pytest.mark.timeout(300)
def test_writes_that_fail(tmp_path: Path, zygote: Zygote, reference: Reference) -> None:
    """A disk that is full, or fails, at single writes: what could not be kept is refused, and is not there."""
    errors = (
        "journal.before-insert=raise@3;snapshot.before-fsync=raise@1",
        "journal.before-insert=full@5;snapshot.before-write=full@2",
        "snapshot.before-rename=raise@1;create.before-insert=full@1;snapshot.before-record=full@2",
        "journal.before-insert=full@2;delete.before-delete=full@1;snapshot.mid-write=full@2",
    )
    lives = [Life("kill", 1, 0.3, loss, failpoints=text) for text in errors for loss in (Loss.NOTHING, Loss.UNFLUSHED)]
    tally = play(lives, 301, tmp_path, zygote, reference)
    assert tally.kills == len(lives)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [201, 202])
def test_damaged_files_are_never_served_in_silence(
    seed: int, tmp_path: Path, zygote: Zygote, reference: Reference
) -> None:
    print(f"again: python -m tests.robustness --damage {len(KINDS)} --seed {seed}")
    with Episode(tmp_path, seed, zygote, reference, churns=False) as episode:
        episode.play(with_damage(seed, len(KINDS)))
    assert episode.tally.damages


def test_a_round_in_which_too_little_happens_is_no_pass(
    tmp_path: Path, zygote: Zygote, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.robustness.episode.LIFE_SECONDS", 2.0)
    (tmp_path / "point").mkdir()
    with (
        pytest.raises(TooLittleTraffic, match=r"nothing has come to commit\.after-apply 1000000 times"),
        Episode(tmp_path / "point", 1, zygote, reference) as episode,
    ):
        episode.play([Life("commit.after-apply", 1_000_000, 0.0, Loss.NOTHING)])
    (tmp_path / "idle").mkdir()
    nobody_answers = Life("kill", 1, 0.0, Loss.NOTHING, failpoints="commit.before-journal=sleep:60")
    with (
        pytest.raises(TooLittleTraffic, match="answers in 2 s"),
        # A run without a journal might be answered often enough before the first block of the others.
        Episode(
            tmp_path / "idle", 1, zygote, reference, churns=False, shapes=[Shape("journal-a", "JOURNAL", 1)]
        ) as episode,
    ):
        episode.play([nobody_answers])
