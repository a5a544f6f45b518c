"""No server: each worker has all parameters and all of Adam's state, gloo adds the gradients up, each updates its own.

The mean stays in the array that was sent. A gradient is therefore the mean of all from its second time on, which has
the same mean; copying it first would cost what a training that writes its gradients anew does not pay.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.teams.member import Member, serve
from benchmarks.teams.task import BETAS, EPS, LR, Array, Task
from benchmarks.teams.team import Workers


class GlooTeam(Workers):
    """Over loopback."""

    def __init__(self, task: Task) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="benchmark-")
        super().__init__(task, __name__, threads=task.threads_each)
        self.join((Path(self._directory.name) / "store").as_uri())

    def close(self) -> None:
        super().close()
        self._directory.cleanup()


class Worker(Member):
    """In the group."""

    def __init__(self, task: Task, rank: int, target: Any) -> None:
        super().__init__(task, rank)
        torch.set_num_threads(task.threads_each)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=target, rank=rank, world_size=task.workers)
        self._workers = task.workers
        self._params = torch.nn.Parameter(torch.from_numpy(task.parameters()))
        self._optimizer = torch.optim.Adam([self._params], lr=LR, betas=BETAS, eps=EPS, fused=True)

    def round(self, gradient: Array) -> None:
        mean = torch.from_numpy(gradient)
        dist.all_reduce(mean)
        mean /= self._workers
        self._params.grad = mean
        self._optimizer.step()

    def parameters(self) -> Array:
        return self._params.detach().numpy()

    def leave(self) -> None:
        dist.destroy_process_group()


if __name__ == "__main__":
    serve(Worker)
