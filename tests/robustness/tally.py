"""What episodes have seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """What an episode has seen."""

    kills: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    """Kills by what the server was doing."""
    losses: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    """Starts, or runs, that were refused after damage."""
    cuts: int = 0
    """How often all open connections were cut."""
    cut_connections: int = 0
    """How many that were."""
    acknowledged: int = 0
    by_lane: int = 0
    """Blocks among them whose messages went by a lane."""
    unknown: int = 0
    rolled_back: int = 0
    client_restarts: int = 0
    workers: Counter[str] = field(default_factory=Counter)
    """What has happened to workers of shared runs."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Of contributions to shared runs."""
    rounds: int = 0
    """Of shared runs, applied; also such as were lost again where that is allowed."""
    compared: int = 0
    """Answers to contributions whose parameters were those that the run had then."""
    shared_kills: int = 0
    """Servers killed while workers of shared runs were at work on them."""
    checks: int = 0
    """Runs that were compared, bit for bit, with their history."""

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(value)
            else:
                setattr(self, name, mine + value)
