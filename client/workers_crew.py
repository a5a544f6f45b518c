"""The processes of one training of ``train_workers.py``: started, listened to, one of them killed and another sent in.

What happens to them happens between rounds that are named, not at times: two executions have the same contributors.
"""

from __future__ import annotations

import multiprocessing
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from workers_plan import JOINED, PAUSED, READY, Contribution, Plan


def work(*arguments: Any) -> None:
    """What a worker's process does. Only there is torch needed."""
    from workers_training import work

    work(*arguments)


class WorkerFailed(Exception):
    """Raised when a worker has ended that nobody has killed."""


@dataclass(frozen=True)
class Events:
    """What happens to a training."""

    killed: int
    """The worker of this place gets SIGKILL,"""
    killed_after: int
    """when so many rounds have been applied, while it has not contributed to the next one."""
    joins_after: int
    """After so many a new one takes the place."""


@dataclass
class Training:
    """What came of one."""

    plan: Plan
    events: Events | None
    contributions: list[Contribution] = field(default_factory=list)
    accuracy: float = 0.0
    """Share of the test pictures that are recognized, with the parameters that rank-0 has at the end."""
    seconds: float = 0.0
    """From when all were ready until all had ended."""

    @property
    def accepted(self) -> list[Contribution]:
        return [each for each in self.contributions if each.outcome == "accepted"]

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """``[rounds]``: the mean over all pictures of the round, before its step; NaN for a round of nobody."""
        total, pictures = np.zeros((2, self.plan.rounds))
        for each in self.accepted:
            total[each.round - 1] += each.loss * each.pictures
            pictures[each.round - 1] += each.pictures
        with np.errstate(invalid="ignore"):
            means: npt.NDArray[np.float64] = total / pictures
        return means

    @property
    def contributors(self) -> npt.NDArray[np.int64]:
        """``[rounds]``: how many contributions were applied, as their senders have been told."""
        found = np.zeros(self.plan.rounds, np.int64)
        for each in self.accepted:
            found[each.round - 1] = each.contributors
        return found


class Crew:
    """A context manager; at its end no process of it is left.

    They are forked by a process that has imported torch and nothing else has happened in: importing it in each would
    take longer than the training.
    """

    def __init__(self, plan: Plan, events: Events | None) -> None:
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(method)
        self._context.set_forkserver_preload(["torch", "sklearn.datasets", "gradwire.client"])
        self._events = events
        self._processes: dict[str, BaseProcess] = {}
        self._pipes: dict[str, Connection] = {}
        self.training = Training(plan, events)
        starters = [f"rank-{place}" for place in range(plan.workers)]
        self._not_ready = set(starters)
        self._starters = starters
        self._killed = self._late = ""
        pauses: dict[str, int] = {}
        if events is not None:
            self._killed, self._late = starters[events.killed], f"rank-{plan.workers}"
            pauses = {starters[0]: events.joins_after, self._killed: events.killed_after}
            self._not_ready.add(self._late)
        for place, worker_id in enumerate(starters):
            self._start(worker_id, place, pauses.get(worker_id))
        if events is not None:
            self._start(self._late, events.killed, None)

    def _start(self, worker_id: str, place: int, pauses: int | None) -> None:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self.training.plan, worker_id, place, pauses)
        process = self._context.Process(target=work, args=arguments, name=worker_id, daemon=True)
        process.start()
        theirs.close()  # so that we notice when it ends
        self._processes[worker_id], self._pipes[worker_id] = process, ours

    def listen(self) -> Training:
        """Until all have ended. Raises WorkerFailed."""
        started = time.perf_counter()
        while self._pipes:
            for pipe in wait(list(self._pipes.values())):
                worker_id = next(found for found, each in self._pipes.items() if each is pipe)
                try:
                    message = self._pipes[worker_id].recv()
                except (EOFError, OSError):
                    self._ended(worker_id)
                    continue
                if message == READY:
                    self._not_ready.discard(worker_id)
                    if not self._not_ready:
                        started = time.perf_counter()
                        self._say_go(*self._starters)
                else:
                    self._heard(worker_id, message)
        self.training.seconds = time.perf_counter() - started
        return self.training

    def _heard(self, worker_id: str, message: Contribution | float | str) -> None:
        if isinstance(message, Contribution):
            self.training.contributions.append(message)
        elif isinstance(message, float):
            if worker_id == self._starters[0]:
                self.training.accuracy = message
        elif message == PAUSED:
            if worker_id == self._killed:
                self._processes[worker_id].kill()
            else:
                self._say_go(self._late)  # the others wait for this one, and this one for the late one
        elif message == JOINED and worker_id == self._late:
            self._say_go(self._starters[0])

    def _say_go(self, *worker_ids: str) -> None:
        for worker_id in worker_ids:
            with suppress(OSError):  # one that has ended says so by the end of its pipe
                self._pipes[worker_id].send("go")

    def _ended(self, worker_id: str) -> None:
        self._pipes.pop(worker_id).close()
        process = self._processes[worker_id]
        process.join()
        if process.exitcode != 0 and worker_id != self._killed:
            raise WorkerFailed(f"{worker_id} ended with exit code {process.exitcode}; expected 0")

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.kill()
            process.join()
        for pipe in self._pipes.values():
            pipe.close()
