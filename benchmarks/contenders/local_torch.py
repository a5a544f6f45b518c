"""torch.optim in the client's own process: no wire, and the client carries the optimizer's state."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.contenders.problem import Array, Contender, Problem
from benchmarks.contenders.torch_server import TorchServer


class Fused(Contender):
    fused = True

    def __init__(self, problem: Problem) -> None:
        self._server = TorchServer(problem, fused=self.fused)

    def step(self, gradients: Sequence[Array]) -> Sequence[Array]:
        return [value.numpy() for value in self._server.step([torch.from_numpy(array) for array in gradients])]

    def close(self) -> None:
        pass


class Default(Fused):
    fused = False
