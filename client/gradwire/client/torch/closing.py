"""The end of an optimizer, wherever and whenever it comes."""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from gradwire.client.connection import Server
from gradwire.client.run import Run

WAIT_SECONDS = 3.0
"""How long the garbage collector may wait for the run to be given back, which takes milliseconds, or, where the
connection is broken, up to two seconds."""


class Closing:
    """Closes what an optimizer holds, once: when it is told to, or when the process ends. Does nothing in a forked one.

    Args:
        server: the connection, where it is the optimizer's own.
    """

    def __init__(self, server: Server | None) -> None:
        self.run: Run | None = None
        self.last_words: Callable[[], None] | None = None
        """Called at the end of a process that has not failed, and not told to close: writes what is not there yet."""
        self._server = server
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._done = False
        atexit.register(self._at_exit)

    @property
    def here(self) -> bool:
        """Whether this is the process that made it: gRPC does not outlive a fork."""
        return self._process == os.getpid()

    def __call__(self) -> None:
        if not self.here:
            return
        with self._lock:
            if self._done:
                return
            self._done = True
            atexit.unregister(self._at_exit)
            if self._server is not None:
                self._server.close()
            elif self.run is not None:
                self.run.close()

    def _at_exit(self) -> None:
        # After an uncaught exception nobody knows whether the parameters are as somebody wanted them.
        if self.here and self.last_words is not None and getattr(sys, "last_value", None) is None:
            with suppress(Exception):
                self.last_words()
        self()

    def in_background(self) -> None:
        """For the garbage collector, which works in any thread, also in one that must go on for anything to be closed.

        Waits all the same: mostly it is no such thread, and whoever drops an optimizer may want its run at once.
        """
        if not self.here or self._done:
            return
        ended = threading.Event()

        def close() -> None:
            try:
                self()
            finally:
                ended.set()

        # Not a Thread, whose start takes a lock that the interrupted thread may hold.
        _thread.start_new_thread(close, ())
        ended.wait(WAIT_SECONDS)
