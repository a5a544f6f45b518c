"""Servers that start quickly: a process that has imported all of one already, and forks. Run as a module, this is it.

Each server is a process of its own that runs the real command line with the environment of its order; what it saves is
the second of imports and the loading of kernels. The zygote has no threads, and never uses gRPC: both would be
harmed by forking.
"""

from __future__ import annotations

import gc
import json
import math
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

ROOT = Path(__file__).parents[1]
MESSAGE_BYTES = 1 << 20
AVAILABLE = hasattr(os, "pidfd_open")
"""Whether this system can wait for processes that are not our children, with a time-out."""


def clean_environment() -> dict[str, str]:
    """Ours, less what is set for servers; they keep compiled kernels where we do."""
    kept = "GRADWIRE_CACHE_DIR"
    return {key: value for key, value in os.environ.items() if key == kept or not key.startswith("GRADWIRE_")}


# --- the side of the tests -------------------------------------------------------------------------------------------


class Zygote:
    """The process that forks servers; a context manager.

    Args:
        module: what is run; its program calls `fork_servers`.
        environment: further environment variables.
    """

    def __init__(self, module: str = "tests.zygote", environment: Mapping[str, str] | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            # No thread may be there when it forks.
            env={**clean_environment(), "OPENBLAS_NUM_THREADS": "1", **(environment or {})},
            cwd=ROOT,
        )
        theirs.close()
        self._socket = ours
        self._lock = threading.Lock()
        try:
            assert self._socket.recv(MESSAGE_BYTES) == b"ready", "the process that forks servers did not start"
        except BaseException:
            self.close()
            raise

    def ask(self, order: Mapping[str, Any], descriptors: Sequence[int] = ()) -> int:
        """The pid of a new server whose standard streams are ``descriptors``.

        For the order ``{"wait": pid}`` the exit status of one that ends, as in `subprocess`.
        """
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(order).encode()], descriptors)
            answer: int = json.loads(self._socket.recv(MESSAGE_BYTES))
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process: it ends when nobody can ask it any more, or is killed."""
        self._socket.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ForkedProcess:
    """``python -m MODULE ARGUMENTS`` by a zygote, with what tests use of `subprocess.Popen`; all streams are pipes."""

    def __init__(self, zygote: Zygote, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        their_in, our_in = os.pipe()
        our_out, their_out = os.pipe()
        our_errors, their_errors = os.pipe()
        self.stdin, self.stdout, self.stderr = (
            os.fdopen(our_in, "wb"),
            os.fdopen(our_out, "rb"),
            os.fdopen(our_errors, "rb"),
        )
        order = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "directory": str(Path.cwd()),
        }
        theirs = [their_in, their_out, their_errors]
        try:
            self.pid = zygote.ask(order, theirs)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self.returncode: int | None = None
        self._zygote = zygote
        self._ended = os.pidfd_open(self.pid)  # it is this process's pid until we have asked for its status
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        with self._lock:
            if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
                self.returncode = self._zygote.ask({"wait": self.pid})
                os.close(self._ended)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. Raises subprocess.TimeoutExpired."""
        give_up_at = math.inf if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:  # without the lock between: others ask, too, and send signals
            if time.monotonic() > give_up_at:
                raise subprocess.TimeoutExpired(f"server {self.pid}", timeout or 0.0)
            time.sleep(0.002)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Does nothing to a process that has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# --- the side of the zygote ------------------------------------------------------------------------------------------


def fork_servers(become: Callable[[Mapping[str, Any]], None]) -> None:
    """Answers orders until nobody can give any; ``become(order)`` is what a new process runs, and ends with."""
    asked = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests; they end, and then we do
    gc.collect()
    gc.freeze()
    asked.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, MESSAGE_BYTES, 3)
        if not message:
            return
        order = json.loads(message)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                break
        for descriptor in descriptors:
            os.close(descriptor)
        asked.send(json.dumps(answer).encode())
    asked.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    become(order)


def warm_up() -> None:
    """Loads what every server would load; the kernels come from the cache on disk, or go into it."""
    import numpy as np

    from gradwire.server import app  # noqa: F401  # so that no server has to import it
    from gradwire.server.cli import commands  # noqa: F401
    from gradwire.server.devices.select import open_device
    from gradwire.server.optimizers.adam import AdamHyperparameters, EpsilonPlacement
    from gradwire.server.store import disk, writer  # noqa: F401

    device = open_device("cpu", 1)
    groups = [
        AdamHyperparameters(amsgrad=amsgrad, epsilon_placement=placement)
        for placement in EpsilonPlacement
        for amsgrad in (False, True)
    ]
    device.warm_up([(group.kernel, np.dtype(np.float32)) for group in groups])
    groups[0].varying(1, 1, 1, np.dtype(np.float32))
    device.close()


def become_server(order: Mapping[str, Any]) -> None:
    """In the forked process: runs the command line to its end."""
    from gradwire.server import failpoints

    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    failpoints.arm_from(os.environ.get(failpoints.ENVIRONMENT, ""))
    sys.argv = [order["module"], *order["arguments"]]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    warm_up()
    fork_servers(become_server)
