"""What is going to be done to a server, and when: all of it follows from a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.robustness.damage import KINDS
from tests.robustness.disk import FileKind, Loss

_SOURCES = Path(__file__).parents[2] / "server" / "gradwire" / "server"


def failpoints() -> list[str]:
    """All that are in the server's sources."""
    found = set()
    for path in sorted(_SOURCES.rglob("*.py")):
        found |= set(re.findall(r'failpoint\("([^"]+)"\)', path.read_text()))
    return sorted(found)


OF_ROUNDS = "round."
"""Points of shared runs alone begin so."""

OF_SHARED_RUNS = (
    "stage.",
    "commit.",
    "journal.before-insert",
    "journal.before-commit",
    "journal.commit",
    "journal.after-commit",
    "reply.",
    OF_ROUNDS,
)
"""Points that the workers of shared runs come to, without any other client, begin so."""


def points_without_rounds() -> list[str]:
    """Those that runs of one worker come to."""
    return [point for point in failpoints() if not point.startswith(OF_ROUNDS)]


def shared_points() -> list[str]:
    """Those that shared runs come to."""
    return [point for point in failpoints() if point.startswith(OF_SHARED_RUNS)]


FLUSHES = [f"flush.{moment}-{kind.name.lower()}" for kind in FileKind for moment in ("before", "after")]
"""Moments that are no failpoints of the server's: around each flush, in the preloaded library."""

RARE = ("checkpoint", "delete", "create", "prune", "database", "write.")
"""Points that are not reached often: the first hit is taken."""

TROUBLES = ("cut", "cut", "cut-after", "cut-after", "half-close", "stall", "delay", "stop", "client", "full")


@dataclass(frozen=True)
class Trouble:
    """Something that a server and its clients must survive without a kill."""

    kind: str
    at_seconds: float
    """After the server is ready."""
    seconds: float
    up: bool
    """Of the two directions of a connection, the one to the server."""
    size_bytes: int


@dataclass(frozen=True)
class Life:
    """One server process, from its start to its end.

    ``end`` is ``kill`` (SIGKILL after a while), ``start`` (SIGKILL while it starts), ``term`` (SIGTERM, and its end is
    waited for), ``drain`` (SIGKILL a moment after SIGTERM), or the point at which it dies.
    """

    end: str
    hit: int
    after_seconds: float
    loss: Loss
    troubles: tuple[Trouble, ...] = ()
    slow_flush_us: int = 0
    failpoints: str = ""
    """Further ones, which do not end it."""
    damage: str = ""
    """What is done to the files afterwards: one of ``damage.KINDS``."""

    @property
    def at_point(self) -> bool:
        return "." in self.end


def _troubles(chance: random.Random, count: int) -> tuple[Trouble, ...]:
    found = [
        Trouble(
            kind=chance.choice(TROUBLES),
            at_seconds=chance.uniform(0.0, 0.4),
            seconds=chance.uniform(0.02, 0.15),
            up=chance.random() < 0.5,
            size_bytes=chance.randrange(1, 3000),
        )
        for _ in range(count)
    ]
    return tuple(sorted(found, key=lambda trouble: trouble.at_seconds))


def with_damage(seed: int, count: int) -> list[Life]:
    """Kills after which files are damaged."""
    chance = random.Random(seed)
    kinds = sorted(KINDS)
    return [
        Life("kill", 1, chance.uniform(0.1, 0.4), Loss.NOTHING, damage=kinds[number % len(kinds)])
        for number in range(count)
    ]


def _loss(chance: random.Random) -> Loss:
    return chance.choice((Loss.NOTHING, Loss.UNFLUSHED, Loss.SOME))


def at_points(seed: int, points: Sequence[str], times: int) -> list[Life]:
    """Each point ``times`` times, in any order; every kind of loss at each."""
    chance = random.Random(seed)
    losses = list(Loss)
    lives = []
    for point in points:
        for time in range(times):
            rare = any(word in point for word in RARE)
            hit = 1 if rare else chance.randrange(2, 9)
            lives.append(Life(point, hit, 0.0, losses[time % len(losses)], slow_flush_us=chance.choice((0, 500))))
    chance.shuffle(lives)
    return lives


ENDS = {"kill": 10, "start": 2, "term": 1, "drain": 2, "point": 4}
"""Of lives that end at random, how often in which way."""

ENDS_WITHOUT_POINTS = {end: weight for end, weight in ENDS.items() if end != "point"}


def at_random(seed: int, count: int, troubles: int = 2, ends: Mapping[str, int] = ENDS) -> list[Life]:
    """Kills at any time, and everything else that can go wrong."""
    chance = random.Random(seed)
    points = [*points_without_rounds(), *FLUSHES]
    lives = []
    for _ in range(count):
        kind = chance.choices(list(ends), list(ends.values()))[0]
        end = chance.choice(points) if kind == "point" else kind
        after = {"kill": chance.uniform(0.02, 0.4), "start": chance.uniform(0, 0.15), "drain": chance.uniform(0, 0.05)}
        hit = 1 if any(word in end for word in RARE) else chance.randrange(1, 12)
        few = _troubles(chance, chance.randrange(troubles + 1)) if kind in ("kill", "term", "drain") else ()
        lives.append(Life(end, hit, after.get(kind, 0.2), _loss(chance), few, chance.choice((0, 0, 1000, 10_000))))
    return lives
