"""This project: its server, and workers at a shared run whose rounds wait for all of them."""

from __future__ import annotations

from typing import Any

from benchmarks.child import SERVE, Child
from benchmarks.floors import LOOPBACK
from benchmarks.teams.member import Member, serve
from benchmarks.teams.task import BETAS, EPS, LR, Array, Task
from benchmarks.teams.team import Workers
from gradwire.client import Server, Shared, TorchAdam, connect

RUN, TENSOR = "benchmark", "w"


class GradwireTeam(Workers):
    """Over loopback TCP, with the memory that both sides of one host share by themselves."""

    shares_memory = True
    params_in_it = False
    module = __name__
    processes: int | None = None
    """None: one for each worker."""

    def __init__(self, task: Task) -> None:
        self.server = Child([*SERVE, "--listen", LOOPBACK, "--threads", str(task.threads)], threads=task.threads)
        super().__init__(task, self.module, threads=1, processes=self.processes)
        address = self.server.said["addresses"][0]
        self.join({"address": address, "shared_memory": self.shares_memory, "shared_params": self.params_in_it})

    def join(self, target: Any) -> None:
        first, *others = self.workers
        first.ask({"join": target})  # it makes the run that the others join
        self.tell(others, ({"join": target} for _ in others))

    def close(self) -> None:
        super().close()
        self.server.close()


class ParametersInSharedMemory(GradwireTeam):
    """The same, and a worker's parameters lie in that memory, as those of Ray's workers do: it copies no answer."""

    params_in_it = True


class WithoutSharedMemory(GradwireTeam):
    """The same, and all values go through gRPC."""

    shares_memory = False


class Worker(Member):
    """Attached."""

    def __init__(self, task: Task, rank: int, target: Any, server: Server | None = None) -> None:
        super().__init__(task, rank)
        self._own = None if server is not None else connect(target["address"])
        server = server or self._own
        assert server is not None
        options = {"worker_id": f"rank-{rank}", **{name: target[name] for name in ("shared_memory", "shared_params")}}
        if rank == 0:
            optimizer, workers = TorchAdam(lr=LR, betas=BETAS, eps=EPS), Shared(start_with=task.workers)
            params = {TENSOR: task.parameters()}
            self._run = server.create_run(RUN, params, optimizer, workers=workers, **options)
        else:
            self._run = server.attach(RUN, **options)

    def round(self, gradient: Array) -> None:
        if not (receipt := self._run.step({TENSOR: gradient})).applied:
            raise RuntimeError(f"a contribution was not applied: {receipt}")

    def parameters(self) -> Array:
        return self._run.params[TENSOR]

    def leave(self) -> None:
        self._run.close()
        if self._own is not None:
            self._own.close()


if __name__ == "__main__":
    serve(Worker)
