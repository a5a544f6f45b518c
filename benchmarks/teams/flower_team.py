"""Flower's FedAdam, in an environment of its own: its protobuf is older than the one that the others here have.

The smallest loop that Flower has: its gRPC server that streams, and clients that answer each request by parameters from
which they have subtracted a gradient. (Through a SuperLink a round costs seconds, for clients ask now and then.)
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.child import ROOT, Child
from benchmarks.teams.task import Array, Task
from benchmarks.teams.team import Team, Unavailable

PYTHON = "GRADWIRE_FLOWER_PYTHON"
"""Variable that names the interpreter which has Flower."""
_PROGRAM = ("-m", "benchmarks.teams.flower_program")
_MOST_BYTES = 2**29
"""Of a message; FedAdam's parameters are float64 from its first round on."""


class FlowerTeam(Team):
    """Its server drives the rounds."""

    def __init__(self, task: Task) -> None:
        interpreter = Path(os.environ.get(PYTHON, ROOT / ".venv-flower" / "bin" / "python"))
        if not interpreter.exists():
            raise Unavailable("flwr is not installed: make .venv-flower/installed")
        if task.workers != 2:
            raise Unavailable("Flower is measured with 2 workers")
        if 8 * task.elements > _MOST_BYTES:
            raise Unavailable(f"{task.elements:,} parameters of float64 are more than a message of Flower's may have")
        self._directory = tempfile.TemporaryDirectory(prefix="benchmark-")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"

        def child(*arguments: str) -> Child:
            environment = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": self._directory.name}
            command = [*_PROGRAM, task.to_text(), address, *arguments]
            return Child(command, threads=task.threads, environment=environment, interpreter=str(interpreter))

        self.server = child("server")
        self.workers = [child("client", str(rank)) for rank in range(task.workers)]
        self._task = task

    def window(self, rounds: int) -> float:
        start = time.perf_counter()
        self.server.ask({"rounds": rounds})
        return time.perf_counter() - start

    def parameters(self) -> list[Array]:
        """Of the server: its clients get those of a round with the request of the next one."""
        path = Path(self._directory.name) / "parameters.npy"
        self.server.ask({"save": str(path)})
        return [np.load(path)]

    def close(self) -> None:
        for child in (self.server, *self.workers):
            child.let_go()
        for child in (self.server, *self.workers):
            child.close()
        self._directory.cleanup()
