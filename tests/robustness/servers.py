"""Servers that are started quickly, and killed often."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import zygote
from tests.robustness.disk import Disk

START_SECONDS = 90.0
CHECKPOINT_BYTES = 400_000
"""About fifty blocks: the log begins anew often."""


class Zygote(zygote.Zygote):
    """Forks servers that can lose power.

    Args:
        library: what ``disk.build_library`` has made; None: servers on an ordinary disk.
    """

    def __init__(self, library: Path | None = None) -> None:
        super().__init__("tests.robustness.zygote", {} if library is None else {"LD_PRELOAD": str(library)})


class Forked:
    """A process that a zygote has forked. It may die at any time; `wait_ready` and `wait_dead` tell.

    Args:
        order: what the zygote is told.
        log: file to which its log is appended.
    """

    def __init__(self, zygote: Zygote, order: Mapping[str, Any], log: Path) -> None:
        self._zygote = zygote
        their_in, self._stdin = os.pipe()
        self._stdout, their_out = os.pipe()
        their_log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.pid = zygote.ask(order, [their_in, their_out, their_log])
        for descriptor in (their_in, their_out, their_log):
            os.close(descriptor)
        self._said = b""
        self._ended = False
        self.exit_status: int | None = None
        """Once it is dead: as in `subprocess`."""

    def _read(self, deadline: float) -> bool:
        """Takes what the server says; False at the deadline."""
        readable, _, _ = select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            return False
        data = os.read(self._stdout, 4096)
        self._said += data
        self._ended = not data
        return True

    def wait_ready(self, timeout_seconds: float = START_SECONDS) -> bool:
        """Whether it has said a line, as a server does that serves; False: it has ended before."""
        deadline = time.monotonic() + timeout_seconds
        while b"\n" not in self._said and not self._ended:
            if not self._read(deadline):
                raise TimeoutError("the server did not start")
        return b"\n" in self._said

    def wait_dead(self, timeout_seconds: float) -> bool:
        """Whether it has ended."""
        deadline = time.monotonic() + timeout_seconds
        while not self._ended:
            if not self._read(deadline):
                return False
        if self.exit_status is None:
            self.exit_status = self._zygote.ask({"wait": self.pid})
            os.close(self._stdin)
            os.close(self._stdout)
        return True

    @property
    def dead(self) -> bool:
        """Whether it has ended; does not wait."""
        return self.exit_status is not None or self.wait_dead(0)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process is known to have ended."""
        if self.exit_status is None:
            os.kill(self.pid, number)  # as long as nobody has waited for it, the pid is not another's

    def say(self, text: str) -> None:
        """Into its standard input; nobody need be there to read it."""
        with contextlib.suppress(BrokenPipeError):
            if self.exit_status is None:
                os.write(self._stdin, text.encode())

    def kill(self) -> None:
        """SIGKILL, and waits."""
        self.send(signal.SIGKILL)
        assert self.wait_dead(30)

    def stop(self, timeout_seconds: float = 60.0) -> None:
        """SIGTERM, and waits for the end of the drain. Raises AssertionError unless it ends in order."""
        self.send(signal.SIGTERM)
        assert self.wait_dead(timeout_seconds), "the server did not end after SIGTERM"
        assert self.exit_status == 0, f"the server ended with {self.exit_status} after SIGTERM"


class ForkedServer(Forked):
    """One server process.

    Args:
        log: file to which its log is appended.
        shadowed: where its directory lies, if on a disk that can lose power.
        failpoints: as in ``GRADWIRE_FAILPOINTS``.
        bug: one of ``faulty_server.BUGS``.
        life: of its kind; `life_of` finds it in the name of the server's instance.
    """

    def __init__(
        self,
        zygote: Zygote,
        *flags: str,
        log: Path,
        shadowed: Disk | None = None,
        failpoints: str = "",
        bug: str = "",
        life: int = 0,
    ) -> None:
        order = {
            "flags": ["--embedded", "--device", "cpu", "--threads", "1", *flags],
            "shadow": [] if shadowed is None else [str(shadowed.root), str(shadowed.shadow)],
            "failpoints": failpoints,
            "bug": bug,
            "checkpoint_bytes": CHECKPOINT_BYTES,
            "life": life,
        }
        super().__init__(zygote, order, log)


def instance_of(life: int) -> str:
    """What a server of the harness is called in what it tells its clients."""
    return f"life-{life}"


def life_of(instance: str) -> int:
    """The way back."""
    return int(instance.removeprefix("life-"))
