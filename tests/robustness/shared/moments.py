"""Moments at which a worker is killed, or loses its stream, by itself: where it hurts, not only when it happens to."""

from __future__ import annotations

import os
import random
import signal
import threading
from dataclasses import dataclass

from tests.robustness.shared.events import Moment, Notes


@dataclass
class Orders:
    """What the harness wants of a process of workers."""

    settle: int = 0
    """Number of the order to come to rest; 0: go on."""


@dataclass(frozen=True)
class Recklessness:
    """Of all moments, the share at which a worker is killed, and at which it loses its stream."""

    killed: float = 0.004
    cut: float = 0.02


class Cut(Exception):
    """Raised where the worker has lost its stream."""


class Moments:
    """Of one worker."""

    def __init__(self, orders: Orders, recklessness: Recklessness, notes: Notes, chance: random.Random) -> None:
        self._orders = orders
        self._recklessness = recklessness
        self._notes = notes
        self._chance = chance

    def pass_by(self, name: str, factor: float = 1.0) -> None:
        """The worker is here: it may die now. Not where it has been told to come to rest. Raises Cut."""
        if self._orders.settle:
            return
        chance = self._chance.random() / factor
        if chance < self._recklessness.killed:
            self._notes.add(Moment(name, killed=True))
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()
        if chance < self._recklessness.killed + self._recklessness.cut:
            self._notes.add(Moment(name, killed=False))
            raise Cut
