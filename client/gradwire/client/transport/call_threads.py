"""gRPC is called in other threads than the user's, where Ctrl-C cannot reach it."""

from __future__ import annotations

import _thread
import queue
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

GRACE_SECONDS = 2.0
POLL_SECONDS = 0.2
"""Python notices a signal that another thread has caught when a wait ends."""


def begin(work: Callable[[], object]) -> None:
    """Runs ``work``, which raises nothing, in a thread that does not keep the process alive.

    Unlike the start of a `threading.Thread` this is one C call: Ctrl-C comes before it or after it.
    """
    _thread.start_new_thread(work, ())


def take(items: queue.SimpleQueue[T]) -> T:
    """The next item. Ctrl-C ends the waiting and harms nothing, but that the item may be gone."""
    while True:
        try:
            return items.get(timeout=POLL_SECONDS)
        except queue.Empty:
            pass


def in_own_thread(call: Callable[[], T]) -> T:
    """Result of ``call()``, or what it raises; the caller only waits.

    gRPC takes locks of the whole channel in Python code. Ctrl-C between the taking of one and the code that gives it
    back leaves it held for good, and every later call waits for ever. Here Ctrl-C ends the waiting and harms nothing.
    The call has a little time to end first: a write that came in later than the next step's attachment would fence it.
    """
    outcome: list[tuple[Any, BaseException | None]] = []
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))
        ended.put(None)

    begin(work)
    try:
        take(ended)
    except BaseException:
        if not outcome:  # else `ended` may have been emptied already
            with suppress(queue.Empty):
                ended.get(timeout=GRACE_SECONDS)
        raise
    value, error = outcome[0]
    if error is not None:
        raise error
    result: T = value
    return result
