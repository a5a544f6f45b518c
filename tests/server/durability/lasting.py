"""A server whose data directory outlives it: killed, ended in order, started again at the same address."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gradwire.client import Run
from tests import serving
from tests.serving import ServerProcess


class LastingServer:
    """A context manager; ``data`` is the data directory, ``target`` stays the same.

    Args:
        flags: further command line flags.
    """

    def __init__(self, directory: Path, *flags: str) -> None:
        self.data = directory / "data"
        self.target = f"unix:{directory}/socket"
        self._flags = flags
        self._environment: dict[str, str] = {}
        self.process = self._start()

    def _start(self) -> ServerProcess:
        flags = ("--data-dir", str(self.data), "--device", serving.DEVICE or "cpu", *self._flags)
        return ServerProcess(*flags, listen=self.target, environment=self._environment)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.close()

    def stop(self) -> None:
        """SIGTERM, and waits for the end of the drain."""
        self.process.terminate()
        self.process.process.wait(30)
        self.process.close()

    def start(self, failpoints: str = "") -> None:
        """Again, after `kill` or `stop`."""
        self._environment = {"GRADWIRE_FAILPOINTS": failpoints}
        self.process = self._start()

    def restart(self, failpoints: str = "") -> None:
        """Kills, and starts again."""
        self.kill()
        self.start(failpoints)

    @property
    def said(self) -> str:
        """The log of the process that runs now, or did last."""
        return "".join(self.process.log)

    def __enter__(self) -> LastingServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.close()


@contextmanager
def small_file_system(path: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of its own at ``path``; skips the test where nobody may mount one."""
    path.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def gradient(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def everything(run: Run) -> dict[str, Any]:
    """All values of a run on the server, as bytes and numbers."""
    state = run.state_dict()
    tensors = {
        name: {key: value.tobytes() if isinstance(value, np.ndarray) else value for key, value in fields.items()}
        for name, fields in state["tensors"].items()
    }
    params = {name: value.tobytes() for name, value in run.read().items()}
    spec = run.describe().spec
    spec.name = ""
    spec.durability = 0  # type: ignore[assignment]
    return {"step": state["step"], "tensors": tensors, "params": params, "spec": spec.SerializeToString()}
