"""What the workers of ``train_workers.py`` and the process that has started them tell each other."""

from __future__ import annotations

from dataclasses import dataclass

READY, JOINED, PAUSED = "ready", "joined", "paused"
"""What a worker says; after the first and the last it waits for a word."""


@dataclass(frozen=True)
class Plan:
    """One training, as all of its workers know it."""

    target: str
    run: str
    workers: int
    """Parts into which each batch is cut; also how many workers the training begins with."""
    rounds: int
    seed: int


@dataclass(frozen=True)
class Contribution:
    """What a worker has sent, and what it was told of it."""

    worker_id: str
    round: int
    """From 1 on; 0: it became part of none."""
    outcome: str
    loss: float
    """Mean over its pictures, before the step."""
    pictures: int
    share: float
    contributors: int
    seconds: float
    """From when it was sent until its round had closed and the new parameters were here."""
