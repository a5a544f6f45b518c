"""Which workers of shared runs this process is, by the names that ranks give."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary


@dataclass(eq=False)
class Place:
    """That of a worker, as long as anybody refers to this."""

    given_up: Callable[[], bool]
    """Whether it is free again."""


_lock = threading.Lock()
_taken: WeakValueDictionary[tuple[str, str], Place] = WeakValueDictionary()


def take(run: str, uid: str, worker_id: str, given_up: Callable[[], bool]) -> Place:
    """From now on this process is the worker ``worker_id`` of the run.

    Raises ValueError where it is that already: a rank is one worker, and the second one would end the first one's
    stream.
    """
    with _lock:
        other = _taken.get((uid, worker_id))
        if other is not None and not other.given_up():
            raise ValueError(
                f"this process is worker {worker_id!r} of {run} already, by its rank; expected the other Run of it to "
                "be closed first, or, for several workers (threads) in one process, a worker_id for each"
            )
        _taken[uid, worker_id] = place = Place(given_up)
        return place
