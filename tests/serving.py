"""A real server process for tests: ``python -m gradwire.server serve`` on a port of its own.

Most are forked by a zygote, which this process has one of; a few start as users' servers do.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.zygote import AVAILABLE, ForkedProcess, Zygote, clean_environment

START_TIMEOUT_SECONDS = 90.0
"""How long a start may take on a busy machine: the first one compiles kernels."""

DEVICE = os.environ.get("GRADWIRE_TEST_DEVICE", "")
"""What the servers of tests compute on, where a test does not say: ``make gpu`` runs tests with ``cuda``."""


@functools.cache
def _zygote() -> Zygote:
    zygote = Zygote()
    atexit.register(zygote.close)
    return zygote


class ServerProcess:
    """Starts at once; ``target`` is where it serves. A context manager that ends the process.

    Args:
        flags: further command line flags.
        listen: the address; default: any free port of 127.0.0.1.
        environment: further ``GRADWIRE_*`` variables.
        module: what is started.
        forked: False: by an interpreter of its own, as users do. One that is forked has pages in common with others:
            what it takes up (`rss_bytes`) says little.
    """

    def __init__(
        self,
        *flags: str,
        listen: str = "127.0.0.1:0",
        environment: Mapping[str, str] | None = None,
        module: str = "gradwire.server",
        forked: bool = True,
    ) -> None:
        arguments = ["serve", "--embedded", "--listen", listen, *flags]
        if DEVICE and "--device" not in flags:
            arguments += ["--device", DEVICE]
        variables = {**clean_environment(), **(environment or {})}
        self.process: subprocess.Popen[bytes] | ForkedProcess
        if forked and AVAILABLE and DEVICE in ("", "cpu"):
            self.process = ForkedProcess(_zygote(), module, arguments, variables)
        else:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=variables,
            )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.target: str
        self.log: list[str] = []
        self._log_reader = threading.Thread(target=self._drain_log, daemon=True)
        self._log_reader.start()
        try:
            self.target = self._read_target()
        except BaseException:
            self.process.kill()
            self.close()
            raise

    def _read_target(self) -> str:
        """Waits until it serves."""
        assert self.process.stdout is not None
        timer = threading.Timer(START_TIMEOUT_SECONDS, self.process.kill)
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            self.process.wait()
            self._log_reader.join(5)
            raise RuntimeError(f"the server did not start: {''.join(self.log)}")
        target: str = json.loads(line)["addresses"][0]
        return target

    def _drain_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.decode(errors="replace"))

    @property
    def pid(self) -> int:
        return self.process.pid

    def rss_bytes(self) -> int:
        """Resident memory of the process."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def kill(self) -> None:
        """SIGKILL, and waits."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        """SIGTERM: the server drains. Does not wait."""
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Ends the process, however it is."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.terminate()  # a process forked from this one may hold the pipes, too
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self._log_reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
