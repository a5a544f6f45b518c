"""A server of one's own, in a child process that ends with the client, even when the client is killed."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path

from gradwire.client.errors import EmbeddedServerError
from gradwire.client.transport.owner import Owner
from gradwire.client.transport.python_child import python_command, python_environment

START_TIMEOUT_SECONDS = 120.0
"""The first start on a machine compiles kernels; later ones take a second."""

STOP_TIMEOUT_SECONDS = 10.0

_KEPT_SETTING = "GRADWIRE_CACHE_DIR"
"""The one setting of the environment that an embedded server shares with others: compiled kernels are all the same."""

_PLAIN = re.compile(r"[A-Za-z0-9/._-]+")
"""Paths that mean in gRPC's URIs what they mean elsewhere."""

_LONGEST_SOCKET_PATH = 103
"""Bytes; Linux has 4 more."""


class EmbeddedServer:
    """Starts ``python -m gradwire.server`` on a unix socket that only this user can reach.

    The child holds the read end of a pipe; when this process ends, however it ends, the pipe does too and the child
    leaves. What ``GRADWIRE_*`` say is for other servers. Raises EmbeddedServerError.

    Args:
        data_dir: where runs are kept; None: in memory only.
    """

    def __init__(self, data_dir: str | Path | None = None) -> None:
        self._owner = Owner("this embedded server")
        if not sys.executable:
            raise EmbeddedServerError("the embedded server needs a Python interpreter, and sys.executable names none")
        self._directory = _private_directory()
        self.target = f"unix:{self._directory}/socket"
        command = [*python_command(), "-m", "gradwire.server", "serve", "--embedded", "--listen", self.target]
        if data_dir is not None:
            command += ["--data-dir", os.path.abspath(data_dir)]
        environment = {
            key: value
            for key, value in python_environment().items()
            if key == _KEPT_SETTING or not key.startswith("GRADWIRE_")
        }
        # The address comes through a pipe of its own: anybody may print to stdout.
        answers, announce = os.pipe()
        try:
            with tempfile.TemporaryFile() as said:
                try:
                    self._process = subprocess.Popen(
                        [*command, "--announce-to", str(announce)],
                        stdin=subprocess.PIPE,
                        stdout=said,
                        stderr=said,
                        env=environment,
                        pass_fds=[announce],
                        start_new_session=True,  # Ctrl-C in a terminal is for the client
                    )
                finally:
                    os.close(announce)
                _servers.add(self)
                answer = self._first_line(answers)
                if answer is None:
                    self.close()
                    said.seek(0)
                    text = said.read().decode(errors="replace").strip()[-2000:]
                    raise EmbeddedServerError(f"the embedded server did not start: {text or 'it said nothing'}")
        except BaseException:
            self.close()
            raise
        finally:
            os.close(answers)
        self.addresses: list[str] = json.loads(answer)["addresses"]

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def close(self) -> None:
        """Ends the server and waits for it. In a forked process: nothing."""
        if not self._owner.here:
            return
        process: subprocess.Popen[bytes] | None = getattr(self, "_process", None)
        if process is not None:
            self._close_pipe()
            try:
                process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _close_pipe(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _first_line(self, pipe: int) -> bytes | None:
        """What the child says once it serves; None: it has ended, or takes too long."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        line = b""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while not line.endswith(b"\n"):
            ended = self._process.poll() is not None  # the pipe may have other writers: processes forked meanwhile
            if poll.poll(0 if ended else 100):
                part = os.read(pipe, 4096)
                if not part:
                    return None
                line += part
            elif ended or time.monotonic() > deadline:
                return None
        return line


def _private_directory() -> str:
    """A new directory for this user alone, whose path a socket's address can hold."""
    places = []
    with suppress(FileNotFoundError):  # no directory that can be written at all
        places.append(tempfile.gettempdir())
    for place in (*places, "/tmp", "/var/tmp"):
        if _PLAIN.fullmatch(place) and len(f"{place}/gradwire-12345678/socket") <= _LONGEST_SOCKET_PATH:
            with suppress(OSError):
                return tempfile.mkdtemp(prefix="gradwire-", dir=place)  # mode 0700
    raise EmbeddedServerError(
        f"there is no place for the embedded server's socket: {', '.join([*places, '/tmp'])} cannot be written, or its "
        "path is too long for a socket or has other characters than letters, digits and . _ - /; set TMPDIR"
    )


_servers: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child, such as a DataLoader's worker: its copy of the pipe would keep the servers alive."""
    for server in list(_servers):
        server._close_pipe()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
