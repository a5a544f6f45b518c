"""A Ray actor that waits for a gradient of each worker, averages them, and does torch's fused Adam.

Arrays travel through the store in shared memory that Ray keeps on each host. Parameters that are too large to go with
the answer are put there once a round, for all workers.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.child import ROOT, Child, thread_environment, wait_for_parent
from benchmarks.teams.member import Member, answers, serve
from benchmarks.teams.task import BETAS, EPS, LR, Array, Task
from benchmarks.teams.team import Workers

_STORE_BYTES = 3 * 2**30
_NAMESPACE, _NAME = "benchmark", "averager"
_WITH_THE_ANSWER = 100_000
"""Bytes up to which Ray sends a value along with the answer."""
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
"""No tokens: ours has none on loopback either, and a driver in another process would need it."""
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": _NAMESPACE}


class Averager:
    """The actor. Its calls are coroutines of one event loop."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        self._task = task
        self._params = torch.nn.Parameter(torch.from_numpy(task.parameters()))
        self._optimizer = torch.optim.Adam([self._params], lr=LR, betas=BETAS, eps=EPS, fused=True)
        self._total = np.empty(task.elements, np.float32)
        self._params.grad = torch.from_numpy(self._total)
        self._arrived = 0
        self._answer: asyncio.Future[Any] | None = None

    async def step(self, gradient: Array) -> Any:
        """The parameters of the round, or where they are, when all have called."""
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
            np.copyto(self._total, gradient)
        else:
            np.add(self._total, gradient, out=self._total)
        self._arrived += 1
        answer = self._answer
        if self._arrived == self._task.workers:
            self._arrived, self._answer = 0, None
            np.divide(self._total, self._task.workers, out=self._total)
            self._optimizer.step()
            params = self._params.detach().numpy()
            answer.set_result(params.copy() if params.nbytes <= _WITH_THE_ANSWER else [ray.put(params)])
        return await answer


class RayTeam(Workers):
    """Ray's processes are one more child's."""

    def __init__(self, task: Task) -> None:
        host = ["-m", __name__, "host", task.to_text()]
        self.server = Child(host, threads=task.threads, environment=_ENVIRONMENT)
        super().__init__(task, __name__, threads=1, environment=_ENVIRONMENT)
        self.join(self.server.said)

    def close(self) -> None:
        super().close()
        self.server.close()


class Worker(Member):
    """A driver of the same cluster."""

    def __init__(self, task: Task, rank: int, target: Any) -> None:
        super().__init__(task, rank)
        ray.init(address=target, **_QUIET)
        self._actor = ray.get_actor(_NAME)
        self._params: Array = task.parameters()

    def round(self, gradient: Array) -> None:
        answer = ray.get(self._actor.step.remote(gradient))
        self._params = ray.get(answer[0]) if isinstance(answer, list) else answer

    def parameters(self) -> Array:
        return self._params

    def leave(self) -> None:
        ray.shutdown()


def _host(task: Task) -> None:
    parent = answers()
    # Ray's processes take over this one's environment.
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ.update(thread_environment(task.threads), PYTHONPATH=os.pathsep.join(filter(None, paths)))
    ray.init(
        num_cpus=task.threads,
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        **_QUIET,
    )
    remote: Any = ray.remote(num_cpus=0)(Averager)
    actor = remote.options(name=_NAME, max_concurrency=task.workers).remote(task)
    ray.wait([actor.__ray_ready__.remote()])
    print(f'"{ray.get_runtime_context().gcs_address}"', file=parent)
    wait_for_parent()
    ray.shutdown()


if __name__ == "__main__":
    if sys.argv[1] == "host":
        # Ray sends classes of this program by value, those of a module by name, which costs its processes less.
        from benchmarks.teams import ray_team

        ray_team._host(Task.from_text(sys.argv[2]))
    else:
        serve(Worker)
