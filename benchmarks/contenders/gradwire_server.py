"""This project: its server, its client."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.child import SERVE, Child
from benchmarks.contenders.problem import Array, Contender, Problem
from benchmarks.floors import LOOPBACK
from gradwire.client import TorchAdam, connect


class Gradwire(Contender):
    """Args: address: where the server listens; options: of the run, see `RunOptions`."""

    def __init__(self, problem: Problem, address: str = LOOPBACK, **options: Any) -> None:
        flags = ["--listen", address, "--threads", str(problem.threads), "--device", problem.device]
        self._child = Child([*SERVE, *flags], threads=problem.threads)
        self._names = [f"tensor{index}" for index in range(problem.tensors)]
        params = dict(zip(self._names, problem.parameters(), strict=True))
        self._server = connect(self._child.said["addresses"][0])
        self.run = self._server.create_run("benchmark", params, TorchAdam(amsgrad=True), **options)

    def step(self, gradients: Sequence[Array]) -> Sequence[Array]:
        self.run.step(dict(zip(self._names, gradients, strict=True)))
        return list(self.run.params.values())

    def close(self) -> None:
        self.run.close()
        self._server.close()
        self._child.close()


class OverTcp(Gradwire):
    """Loopback TCP."""

    def __init__(self, problem: Problem, **options: Any) -> None:
        super().__init__(problem, shared_memory=False, **options)


class OverUnix(Gradwire):
    """A unix socket."""

    def __init__(self, problem: Problem, **options: Any) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="benchmark-")
        super().__init__(problem, f"unix:{self._directory.name}/socket", shared_memory=False, **options)

    def close(self) -> None:
        super().close()
        self._directory.cleanup()


class OverSharedMemory(Gradwire):
    """Whatever two sides on one host choose by themselves."""


class InSharedMemory(OverSharedMemory):
    """The client's parameters lie where the server writes them. It may write there too."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, shared_params=True)
