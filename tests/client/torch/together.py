"""Workers of one process, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tests.faults.hosted import WAIT_SECONDS

T = TypeVar("T")


def together(*works: Callable[[], T]) -> list[T]:
    """What each of them returns, or what the first one that fails raises."""
    with ThreadPoolExecutor(len(works)) as threads:
        futures = [threads.submit(work) for work in works]
        return [future.result(WAIT_SECONDS) for future in futures]


class Turns:
    """Lets workers wait for one another."""

    def __init__(self, workers: int) -> None:
        self._barrier = threading.Barrier(workers, timeout=WAIT_SECONDS)

    def wait(self) -> None:
        self._barrier.wait()
