"""Servers of the benchmarks in processes of their own, under the same thread settings as everybody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

START_TIMEOUT_SECONDS = 120.0
"""The first start of a gradwire server on a machine compiles its kernels."""
STOP_TIMEOUT_SECONDS = 15.0

_SCHEDULED = 2
"""Beside a process's number in a clock's: time on a processor, to the nanosecond; see clock_getcpuclockid(3)."""

ROOT = Path(__file__).resolve().parents[1]
SERVE = ("-m", "gradwire.server", "serve", "--embedded")
"""Arguments of Python that start a gradwire server which announces itself and ends as a `Child` must."""


def thread_environment(threads: int) -> dict[str, str]:
    """What every process of a benchmark is told: a thread that spins while it waits takes a processor from others."""
    return {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def same_threads(threads: int) -> None:
    """Begins this program anew under `thread_environment`, where it is not: libraries read it once, when they load."""
    wanted = thread_environment(threads)
    if any(os.environ.get(key) != value for key, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


class Child:
    """A Python program that prints one line of JSON when it is ready and leaves at the end of its standard input.

    Args:
        arguments: of the interpreter: ``-m MODULE ...`` or ``FILE ...``.
        prefix: command that starts the interpreter, such as ``ip netns exec NAME``.
        threads: for `thread_environment`.
        keep_descriptors: that the program inherits, under the same numbers.
        interpreter: Python of another environment.

    Raises RuntimeError when it ends, or says nothing, instead.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        prefix: Sequence[str] = (),
        threads: int = 1,
        environment: Mapping[str, str] | None = None,
        keep_descriptors: Sequence[int] = (),
        interpreter: str = sys.executable,
    ) -> None:
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [*prefix, interpreter, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **{key: value for key, value in os.environ.items() if not key.startswith("GRADWIRE_LISTEN")},
                **thread_environment(threads),
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                **(environment or {}),
            },
            pass_fds=tuple(keep_descriptors),
        )
        assert self.process.stdout is not None
        timer = threading.Timer(START_TIMEOUT_SECONDS, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            self.close()
            raise RuntimeError(f"{' '.join(arguments)} did not start")
        self.said: Any = json.loads(line)

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, request: object) -> None:
        """Sends a line of JSON."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """The next line of JSON. Raises RuntimeError when the program has ended."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError("a child ended instead of answering")
        return json.loads(line)

    def ask(self, request: object) -> Any:
        """`tell`, then `hear`."""
        self.tell(request)
        return self.hear()

    def cpu_seconds(self) -> float:
        """Processor time that it has used so far, in all threads (Linux)."""
        return time.clock_gettime(~self.pid << 3 | _SCHEDULED)

    def cpu_seconds_by_thread(self) -> dict[str, float]:
        """The same by the names of its threads, as far as they still run; ``main`` is the main thread."""
        found: dict[str, float] = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            text = (task / "stat").read_text()
            name = "main" if int(task.name) == self.pid else text.partition("(")[2].rpartition(")")[0]
            fields = text.rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            found[name] = found.get(name, 0) + ticks / os.sysconf("SC_CLK_TCK")
        return found

    def resident_bytes(self) -> int:
        """Its resident memory (Linux)."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def pin(self, processors: Sequence[int]) -> None:
        """Keeps all its threads, and those that they start, on these processors (Linux)."""
        for task in os.listdir(f"/proc/{self.pid}/task"):
            os.sched_setaffinity(int(task), processors)

    def let_go(self) -> None:
        """Ends the program, without waiting for it."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        """Ends the program and waits for it."""
        assert self.process.stdout is not None
        self.let_go()
        try:
            self.process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def ready(said: object) -> None:
    """In the child: it can be reached as ``said``."""
    print(json.dumps(said), flush=True)


def wait_for_parent() -> None:
    """In the child: returns when the parent lets go of it, or has ended."""
    while os.read(sys.stdin.fileno(), 4096):
        pass


def leave_with_parent(stop: Callable[[], object] = lambda: os._exit(0)) -> None:
    """In the child: calls ``stop``, in a thread, when the parent lets go of it, or has ended."""

    def watch() -> None:
        wait_for_parent()
        stop()

    threading.Thread(target=watch, daemon=True).start()
