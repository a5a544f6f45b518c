"""A client in a process of its own, which a test can stop and kill. Run as a module, this file is that client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

import numpy as np

from gradwire.client import connect
from gradwire.v1 import service_pb2_grpc
from tests.faults.bare import BareStream, channel_to
from tests.faults.gated import gradient
from tests.faults.hosted import WAIT_SECONDS

WORKER_ID = "client-process"


class ClientProcess:
    """Starts at once. ``job``: ``half-step`` makes step 1, sends half of step 2 and hangs; ``step-by-lane`` makes one
    and hangs; ``two-steps`` makes two."""

    def __init__(self, job: str, target: str, name: str, size: int) -> None:
        command = [sys.executable, "-m", "tests.faults.client_process", job, target, name, str(size)]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root)

    def wait_for(self, line: str) -> None:
        """Returns when the client has printed ``line``."""
        assert self._process.stdout is not None
        timer = threading.Timer(WAIT_SECONDS, self.kill)
        timer.start()
        try:
            assert self._process.stdout.readline().decode().strip() == line
        finally:
            timer.cancel()

    def stop(self) -> None:
        """SIGSTOP: it goes on existing, and does nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def __enter__(self) -> ClientProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def half_step(target: str, name: str, size: int) -> None:
    stream = BareStream(service_pb2_grpc.OptimizerServiceStub(channel_to(target)), name, WORKER_ID, timeout=600)
    stream.step(1, gradient(size, 1))
    stream.send(2, np.atleast_2d(gradient(size, 2)[: size // 2]), last=False, steps=1)
    stream.receive()
    print("half of step 2 is there", flush=True)
    signal.pause()


def two_steps(target: str, name: str, size: int) -> None:
    with connect(target) as server, server.attach(name, worker_id=WORKER_ID) as run:
        for seed in (1, 2):
            run.step({"w": gradient(size, seed)})
    print("two steps are made", flush=True)


def step_by_lane(target: str, name: str, size: int) -> None:
    with connect(target) as server, server.attach(name, worker_id=WORKER_ID) as run:
        run.step({"w": gradient(size, 1)})
        stream = run._attachment.stream
        print("step 1 went by a lane" if stream is not None and stream.lane is not None else "no lane", flush=True)
        signal.pause()


if __name__ == "__main__":
    job, target, name, size = sys.argv[1:]
    {"half-step": half_step, "step-by-lane": step_by_lane, "two-steps": two_steps}[job](target, name, int(size))
    sys.stdout.flush()
    os._exit(0)  # nothing is tidied up: that is the server's part here
