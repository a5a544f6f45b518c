"""A server of one's own, in a child process that ends with the client, even when the client is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import weakref
from typing import IO

from gradwire.client.errors import EmbeddedServerError

START_TIMEOUT_SECONDS = 120.0
"""The first start on a machine compiles kernels; later ones take a second."""

STOP_TIMEOUT_SECONDS = 10.0


class EmbeddedServer:
    """Starts ``python -m gradwire.server`` on a unix socket that only this user can reach.

    The child holds the read end of a pipe; when this process ends, however it ends, the pipe does too and the child
    leaves. Raises EmbeddedServerError.
    """

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="gradwire-")  # mode 0700
        self.target = f"unix:{self._directory}/socket"
        command = [sys.executable, "-m", "gradwire.server", "serve", "--embedded", "--listen", self.target]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GRADWIRE_LISTEN")}
        with tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,  # Ctrl-C in a terminal is for the client
            )
            # Reading in a thread bounds the wait: a pipe has no time-out.
            answer: list[bytes] = []
            assert self._process.stdout is not None
            reader = threading.Thread(target=_read_line, args=(self._process.stdout, answer), daemon=True)
            reader.start()
            reader.join(START_TIMEOUT_SECONDS)
            if not answer or not answer[0]:
                self.close()
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip()[-2000:]
                raise EmbeddedServerError(f"the embedded server did not start: {said or 'it said nothing'}")
        _servers.add(self)
        self.addresses: list[str] = json.loads(answer[0])["addresses"]

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def close(self) -> None:
        """Ends the server and waits for it."""
        self._close_pipes()
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


_servers: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child, such as a DataLoader's worker: its copy of the pipe would keep the servers alive."""
    for server in list(_servers):
        server._close_pipes()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _read_line(pipe: IO[bytes], answer: list[bytes]) -> None:
    answer.append(pipe.readline())
