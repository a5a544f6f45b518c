"""A worker, as the program that it is: it waits to be told how many rounds to take part in."""

from __future__ import annotations

import abc
import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol, TextIO

import numpy as np

from benchmarks.teams.task import TURNS, Array, Task


class Part(Protocol):
    """What a process takes part with."""

    def rounds(self, count: int) -> None:
        """Takes part in so many more."""

    def parameters(self) -> Array:
        """``[elements]``, as they are here now."""

    def leave(self) -> None:
        """There is nothing more to do."""


class Member(abc.ABC):
    """One that has joined."""

    def __init__(self, task: Task, rank: int) -> None:
        self.gradients = task.gradients(rank)
        self._done = 0

    def rounds(self, count: int) -> None:
        """Takes part in so many more."""
        for _ in range(count):
            self.round(self.gradients[self._done % TURNS])
            self._done += 1

    @abc.abstractmethod
    def round(self, gradient: Array) -> None:
        """Sends a gradient, and has the parameters of the round when it returns."""

    @abc.abstractmethod
    def parameters(self) -> Array:
        """``[elements]``, as this worker has them now."""

    @abc.abstractmethod
    def leave(self) -> None:
        """There is nothing more to do."""


def answers() -> TextIO:
    """What the parent reads; libraries that print get the error output instead. To be called before any other print."""
    own = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return own


def serve(join: Callable[[Task, int, Any], Part]) -> None:
    """The program: arguments are the task and the rank; requests are ``join`` and what to join, ``rounds`` and how
    many, ``save`` and the file of the parameters."""
    parent = answers()

    def answer(said: object = None) -> None:
        print(json.dumps(said), file=parent)

    task, rank = Task.from_text(sys.argv[1]), int(sys.argv[2])
    member: Part | None = None
    answer()
    for line in sys.stdin:
        ((what, value),) = json.loads(line).items()
        if what == "join":
            member = join(task, rank, value)
        elif member is not None and what == "rounds":
            member.rounds(value)
        elif member is not None and what == "save":
            np.save(value, member.parameters())
        answer()
    if member is not None:
        member.leave()
