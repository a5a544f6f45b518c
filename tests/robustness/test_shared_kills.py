"""Shared runs, whose workers and servers are killed: each round once, each contribution at most once, and each worker
told the truth. Each test prints the line that plays it again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness.episode import Episode
from tests.robustness.model import Reference
from tests.robustness.plan import ENDS_WITHOUT_POINTS, Life, at_points, at_random, shared_points
from tests.robustness.servers import Zygote
from tests.robustness.shared.encodings import INT8
from tests.robustness.shared.setting import any_settings
from tests.robustness.tally import Tally

POINTS = shared_points()
SEEDS = (865, 1010)
"""Whose runs are of all kinds, see below."""
LIVES = 13
LARGE = 10_000
"""Values of runs of fewer elements go in messages, even where memory is shared."""
RANDOM_KILLS = 20
"""At no point that has a name: all seeds together."""


def play(lives: list[Life], seed: int, directory: Path, zygote: Zygote, reference: Reference) -> Tally:
    settings = any_settings(seed)
    with Episode(directory, seed, zygote, reference, shapes=[], churns=False, shared=settings) as episode:
        episode.play(lives)
    tally = episode.tally
    assert tally.outcomes["ACCEPTED"] >= 3 * len(lives), f"too little traffic: {tally}"
    assert tally.by_lane >= len(lives), f"too little by lanes: {tally}"
    assert tally.workers
    if any(setting.near and setting.shares_memory and setting.size > LARGE for setting in settings):
        assert tally.workers["attached with both"]
    return tally


def test_the_points_of_rounds_are_among_them() -> None:
    assert {"round.before-commit", "round.before-answers"} <= set(POINTS)
    for word in ("stage.", "commit.", "journal.", "reply."):
        assert any(word in point for point in POINTS), word


def test_the_runs_of_these_seeds_are_of_all_kinds() -> None:
    settings = [setting for seed in SEEDS for setting in any_settings(seed)]
    for name in ("gradients", "answers"):
        assert {getattr(setting, name) for setting in settings} == {"FLOAT32", "BFLOAT16", INT8}
    clipping = {(bool(s.clip_value), bool(s.clip_norm), s.clips_rounds) for s in settings}
    for rounds in (False, True):
        assert any(value and whole == rounds for value, _, whole in clipping)
        assert any(norm and whole == rounds for _, norm, whole in clipping)
    assert {setting.skips for setting in settings if setting.overflows and not setting.clip_value} == {False, True}
    assert any(setting.leads for setting in settings)
    assert any(setting.quorum_weight for setting in settings)
    large = [setting for setting in settings if setting.size > LARGE]
    assert any(setting.shares_memory and 0 < setting.near < setting.workers for setting in large)
    assert any(setting.near for setting in settings if setting.size <= LARGE)


@pytest.mark.timeout(300)
def test_killed_at_every_point(tmp_path: Path, zygote: Zygote, reference: Reference) -> None:
    print(f"again: python -m tests.robustness --shared --points {','.join(POINTS)} --times 1 --seed 1")
    tally = play(at_points(1, POINTS, 1), 1, tmp_path, zygote, reference)
    assert {point: tally.ends[point] for point in POINTS} == dict.fromkeys(POINTS, 1)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_random(seed: int, tmp_path: Path, zygote: Zygote, reference: Reference) -> None:
    """Connections are cut, stalled, delayed and half closed, servers are stopped, disks are full; workers are killed in
    the middle of uploads and while they wait, and stopped past deadlines and leases."""
    print(f"again: python -m tests.robustness --shared --lives {LIVES} --troubles 2 --seed {seed}")
    tally = play(at_random(seed, LIVES, ends=ENDS_WITHOUT_POINTS), seed, tmp_path, zygote, reference)
    assert tally.ends["kill"] + tally.ends["start"] >= RANDOM_KILLS / len(SEEDS)
    assert tally.troubles
