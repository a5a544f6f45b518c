"""Several workers and what is between them, as the benchmark holds them."""

from __future__ import annotations

import abc
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import Child
from benchmarks.teams.task import Array, Task


class Unavailable(Exception):
    """Raised when a team cannot run here; the message says why."""


class Team(abc.ABC):
    """Made from a `Task`."""

    @abc.abstractmethod
    def window(self, rounds: int) -> float:
        """Lets it do so many rounds; returns the seconds that all of them took, and the word to begin and the last
        one's that it has ended."""

    @abc.abstractmethod
    def parameters(self) -> list[Array]:
        """Of each worker, as it has them now."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends all its processes."""


class Workers(Team):
    """A team whose workers drive the rounds, see `member`.

    Args:
        module: name of the program of a worker.
        threads: of each of them.
        processes: None: one for each worker.
        environment: that they have besides.
    """

    def __init__(
        self,
        task: Task,
        module: str,
        threads: int,
        processes: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.task = task
        arguments = [["-m", module, task.to_text(), str(rank)] for rank in range(processes or task.workers)]
        self.workers = [Child(each, threads=threads, environment=environment) for each in arguments]

    def join(self, target: Any) -> None:
        """Tells all whom to join; returns when all have."""
        self.tell(self.workers, ({"join": target} for _ in self.workers))

    def window(self, rounds: int) -> float:
        start = time.perf_counter()
        self.tell(self.workers, ({"rounds": rounds} for _ in self.workers))
        return time.perf_counter() - start

    def parameters(self) -> list[Array]:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
            paths = [Path(directory) / f"{rank}.npy" for rank in range(len(self.workers))]
            self.tell(self.workers, ({"save": str(path)} for path in paths))
            return [np.load(path) for path in paths]

    def tell(self, workers: Sequence[Child], requests: Iterable[object]) -> None:
        """One request for each; returns when all have done it."""
        for worker, request in zip(workers, requests, strict=True):
            worker.tell(request)
        for worker in workers:
            worker.hear()

    def close(self) -> None:
        for worker in self.workers:
            worker.let_go()
        for worker in self.workers:
            worker.close()
