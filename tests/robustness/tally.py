"""What episodes have seen, and how that is kept over the parts of a long run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


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
    checks: int = 0
    """Runs that were compared, bit for bit, with their history."""

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(value)
            else:
                setattr(self, name, mine + value)


@dataclass
class LongRun:
    """Many episodes of one kind, all parts together."""

    seconds: float = 0.0
    episodes: int = 0
    parts: int = 0
    tally: Tally = field(default_factory=Tally)


def load(path: Path, kinds: Iterable[str]) -> dict[str, LongRun]:
    """What earlier parts have counted, by kind."""
    runs = {kind: LongRun() for kind in kinds}
    for kind, counted in (json.loads(path.read_text()) if path.exists() else {}).items():
        values = counted.pop("tally")
        runs[kind] = LongRun(**counted)
        for name, value in values.items():
            setattr(runs[kind].tally, name, Counter(value) if isinstance(value, dict) else value)
    return runs


def save(path: Path, runs: Mapping[str, LongRun]) -> None:
    unfinished = path.with_suffix(".tmp")
    data = {kind: {**vars(run), "tally": vars(run.tally)} for kind, run in runs.items()}
    unfinished.write_text(json.dumps(data, indent=1, sort_keys=True))
    unfinished.replace(path)
