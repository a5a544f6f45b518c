"""Many workers in few processes: each is a thread with a run of its own; those of a process share a connection."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.teams.gradwire_team import GradwireTeam, Worker
from benchmarks.teams.member import serve
from benchmarks.teams.task import Array, Task
from gradwire.client import connect

PROCESSES = 2


class GradwireCrowd(GradwireTeam):
    """As `GradwireTeam`, in so many processes."""

    module = __name__
    processes = PROCESSES


class Threads:
    """The workers of one process; has the methods of a `Member`."""

    def __init__(self, task: Task, process: int, target: Any) -> None:
        self._server = connect(target["address"])
        ranks = range(process, task.workers, PROCESSES)
        self._members = [Worker(task, rank, target, self._server) for rank in ranks]
        self._pool = ThreadPoolExecutor(len(self._members))

    def rounds(self, count: int) -> None:
        """All threads take part in so many more."""
        list(self._pool.map(lambda member: member.rounds(count), self._members))

    def parameters(self) -> Array:
        """Of the first one."""
        return self._members[0].parameters()

    def leave(self) -> None:
        """Ends all."""
        self._pool.shutdown()
        for member in self._members:
            member.leave()
        self._server.close()


if __name__ == "__main__":
    serve(Threads)
