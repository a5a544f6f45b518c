"""Threads that let clients go on."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from tests.robustness.model import Violation
from tests.robustness.trainer import SETTLE_SECONDS


class Turns(Protocol):
    """Something that goes on in steps."""

    def turn(self) -> None:
        """The next one."""


class Worker(threading.Thread):
    """Lets a trainer go on in a thread, with breaks."""

    def __init__(self, trainer: Turns) -> None:
        super().__init__(daemon=True)
        self.trainer = trainer
        self.failure: BaseException | None = None
        self._may_go = threading.Event()
        self._idle = threading.Event()
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.is_set():
            if not self._may_go.is_set():
                self._idle.set()
                self._may_go.wait(0.05)
                continue
            self._idle.clear()
            try:
                self.trainer.turn()
            except BaseException as error:
                self.failure = error
                self._may_go.clear()

    def resume(self) -> None:
        self._may_go.set()

    def pause(self) -> None:
        """Returns when it does nothing any more."""
        self._may_go.clear()
        time.sleep(0)
        deadline = time.monotonic() + SETTLE_SECONDS
        self._idle.clear()
        while not self._idle.wait(0.05):
            if time.monotonic() > deadline:
                raise Violation("a client hangs although nothing is done to its server any more")

    def end(self) -> None:
        """After the present turn; does not wait."""
        self._ended.set()
        self._may_go.set()
