"""One bound for everything that clients can make the server hold."""

from __future__ import annotations

import threading

from gradwire.wire.errors import MemoryLimitExceeded


class Reservation:
    """Bytes set aside in a budget until `release`, which may be called more than once."""

    def __init__(self, budget: MemoryBudget, size_bytes: int) -> None:
        self._budget = budget
        self.size_bytes = size_bytes

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        size_bytes, self.size_bytes = self.size_bytes, 0
        self._budget._give_back(size_bytes)


class MemoryBudget:
    """Counts runs, staged gradients, remembered results and copies together, BEFORE they are allocated.

    Args:
        limit_bytes: the bound, ``--max-memory``.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """What is left."""
        return self.limit_bytes - self.used_bytes

    def reserve(self, size_bytes: int, purpose: str) -> Reservation:
        """Sets bytes aside. Raises MemoryLimitExceeded, and then has set nothing aside."""
        with self._lock:
            free = self.free_bytes
            if size_bytes > free:
                raise MemoryLimitExceeded(
                    f"{purpose} needs {size_bytes} bytes, and {free} of the server's {self.limit_bytes} are free",
                    needed_bytes=size_bytes,
                    free_bytes=free,
                )
            self.used_bytes += size_bytes
        return Reservation(self, size_bytes)

    def _give_back(self, size_bytes: int) -> None:
        with self._lock:
            self.used_bytes -= size_bytes
