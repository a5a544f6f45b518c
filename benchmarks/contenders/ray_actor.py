"""A parameter server as a Ray actor: arrays travel through the store in shared memory that Ray keeps on each host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ray

from benchmarks.child import ROOT, thread_environment
from benchmarks.contenders.problem import Array, Contender, Problem
from benchmarks.contenders.torch_server import TorchServer, as_tensor

_STORE_BYTES = 2 * 2**30


class Actor:
    def __init__(self, problem: Problem) -> None:
        self._optimizer = TorchServer(problem)

    def step(self, gradients: list[Array]) -> list[Array]:
        return [value.numpy() for value in self._optimizer.step([as_tensor(array) for array in gradients])]


class RayActor(Contender):
    def __init__(self, problem: Problem) -> None:
        # Ray's processes take over this one's environment.
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        os.environ.update(thread_environment(problem.threads), PYTHONPATH=os.pathsep.join(filter(None, paths)))
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        ray.init(
            num_cpus=2,
            object_store_memory=_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
        remote: Any = ray.remote(num_gpus=1 if problem.device == "cuda" else 0)(Actor)
        self._actor = remote.remote(problem)

    def step(self, gradients: Sequence[Array]) -> Sequence[Array]:
        values: list[Array] = ray.get(self._actor.step.remote(list(gradients)))
        return values

    def close(self) -> None:
        ray.shutdown()
