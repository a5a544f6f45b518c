"""What Ctrl-C must not cut in half."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Shield:
    """Does changes whole, or not at all: in a thread of their own, where no signal raises anything.

    Whoever waits for one may be interrupted: it ends all the same, before the interruption goes on. Should another
    interruption come in just that moment, `wait` knows that there is something to wait for.
    """

    def __init__(self) -> None:
        self._change: _Change | None = None

    def run(self, change: Callable[[], None]) -> None:
        """Raises what ``change`` raises."""
        begun = _Change(change)
        begun.thread.start()
        try:
            self._change = begun
        finally:
            self.wait()
        if begun.raised is not None:
            raise begun.raised

    def wait(self) -> None:
        """Until no change is under way."""
        change = self._change
        if change is None or change.thread is threading.current_thread():
            return
        try:
            change.await_end()
        finally:
            if not change.finished:
                self.wait()
        self._change = None


class _Change:
    """Plain locks, of which an interruption in any place leaves nothing that somebody would wait for in vain.

    ``Thread.join`` is of no use here: interrupted, it takes the thread for ended.
    """

    def __init__(self, change: Callable[[], None]) -> None:
        self.finished = False
        self.raised: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="gradwire-change", daemon=True)
        self._change = change
        self._gate, self._end = threading.Lock(), threading.Lock()
        self._gate.acquire()
        self._end.acquire()

    def await_end(self) -> None:
        if self._gate.locked():  # by this side or, harmlessly, by the thread
            self._gate.release()
        while not self.finished:
            self._end.acquire(timeout=1.0)

    def _run(self) -> None:
        self._gate.acquire()  # starting a thread can be interrupted, too: nothing is done before somebody waits for it
        try:
            self._change()
        except BaseException as error:  # raised again by whoever waits
            self.raised = error
        finally:
            self.finished = True
            self._end.release()
