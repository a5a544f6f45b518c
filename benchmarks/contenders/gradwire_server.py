"""This project: its server, its client."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.child import SERVE, Child
from benchmarks.contenders.problem import Array, Contender, Problem
from benchmarks.floors import LOOPBACK
from gradwire.client import TLS, TorchAdam, connect
from gradwire.server.access.authority import write_certificates


class Gradwire(Contender):
    """Args: address: where the server listens; tls: folder of certificates; options: of the run, see `RunOptions`."""

    def __init__(self, problem: Problem, address: str = LOOPBACK, tls: Path | None = None, **options: Any) -> None:
        flags = ["--listen", address, "--threads", str(problem.threads), "--device", problem.device]
        if tls is not None:
            flags += ["--tls-cert", str(tls / "server.pem"), "--tls-key", str(tls / "server.key")]
        self._child = Child([*SERVE, *flags], threads=problem.threads)
        self._names = [f"tensor{index}" for index in range(problem.tensors)]
        params = dict(zip(self._names, problem.parameters(), strict=True))
        self._server = connect(self._child.said["addresses"][0], tls=None if tls is None else TLS(ca=tls / "ca.pem"))
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


class OverTls(Gradwire):
    """Loopback TCP, encrypted."""

    def __init__(self, problem: Problem, **options: Any) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="benchmark-")
        tls = make_certificates(Path(self._directory.name))
        super().__init__(problem, tls=tls, shared_memory=False, **options)

    def close(self) -> None:
        super().close()
        self._directory.cleanup()


def make_certificates(directory: Path) -> Path:
    """A folder in it with certificates for loopback."""
    folder = directory / "tls"
    write_certificates(folder, ["127.0.0.1"], 365)
    return folder


class OverUnix(Gradwire):
    """A unix socket."""

    def __init__(self, problem: Problem, **options: Any) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="benchmark-")
        super().__init__(problem, f"unix:{self._directory.name}/socket", shared_memory=False, **options)

    def close(self) -> None:
        super().close()
        self._directory.cleanup()


class OverSharedMemory(Gradwire):
    """Whatever two sides on one host choose by themselves: a lane, and shared memory for what is large."""


class InSharedMemory(OverSharedMemory):
    """The client's parameters lie where the server writes them. It may write there too."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, shared_params=True)
