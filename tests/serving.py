"""A real server process for tests: ``python -m gradwire.server serve`` on a port of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

START_TIMEOUT_SECONDS = 90.0

DEVICE = os.environ.get("GRADWIRE_TEST_DEVICE", "")
"""What the servers of tests compute on, where a test does not say: ``make gpu`` runs tests with ``cuda``."""


class ServerProcess:
    """Starts at once; ``target`` is where it serves. A context manager that ends the process.

    Args:
        flags: further command line flags.
        listen: the address; default: any free port of 127.0.0.1.
        environment: further environment variables.
        module: what is started.
    """

    def __init__(
        self,
        *flags: str,
        listen: str = "127.0.0.1:0",
        environment: Mapping[str, str] | None = None,
        module: str = "gradwire.server",
    ) -> None:
        command = [sys.executable, "-m", module, "serve", "--embedded", "--listen", listen, *flags]
        if DEVICE and "--device" not in flags:
            command += ["--device", DEVICE]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("GRADWIRE_")}
        if "GRADWIRE_CACHE_DIR" in os.environ:
            clean["GRADWIRE_CACHE_DIR"] = os.environ["GRADWIRE_CACHE_DIR"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**clean, **(environment or {})},
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
