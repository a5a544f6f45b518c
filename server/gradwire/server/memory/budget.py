"""One bound for everything that clients can make the server hold."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gradwire.wire.errors import MemoryLimitExceeded, QuotaExceeded

RETRY_SECONDS = 60.0
"""After so long it is worth asking again whether there is room within a quota."""

NO_ROOM = (MemoryLimitExceeded, QuotaExceeded)
"""What `MemoryBudget.reserve` raises: the server is full, or the tenant has as much as it may."""


class Reservation:
    """Bytes set aside in a budget until `release`, which may be called more than once."""

    def __init__(self, budget: MemoryBudget, size_bytes: int) -> None:
        self._budget = budget
        self.size_bytes = size_bytes

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def give_back(self, size_bytes: int) -> None:
        """Releases a part of it."""
        size_bytes = min(size_bytes, self.size_bytes)
        self.size_bytes -= size_bytes
        self._budget._give_back(size_bytes)

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


class BudgetShare(MemoryBudget):
    """A part of another budget, with a bound of its own that may change.

    Args:
        whose: for refusals.
        bound: asked for at each reservation; None: there is none now. What is reserved already stays.
    """

    def __init__(self, whole: MemoryBudget, whose: str, bound: Callable[[], int | None]) -> None:
        super().__init__(whole.limit_bytes)
        self._whole = whole
        self._whose = whose
        self._bound = bound

    @property
    def free_bytes(self) -> int:
        """What is left, of the bound and of the whole."""
        bound = self._bound()
        return self._whole.free_bytes if bound is None else min(self._whole.free_bytes, bound - self.used_bytes)

    def reserve(self, size_bytes: int, purpose: str) -> Reservation:
        """Raises QuotaExceeded where the bound is the reason, MemoryLimitExceeded where the whole is full."""
        with self._lock:
            bound = self._bound()
            if bound is not None and self.used_bytes + size_bytes > bound:
                error = QuotaExceeded(
                    f"quota 'memory': {purpose} needs {size_bytes} bytes, and {max(0, bound - self.used_bytes)} of the "
                    f"{bound} of {self._whose} are free",
                    needed_bytes=size_bytes,
                    free_bytes=max(0, bound - self.used_bytes),
                    quota="memory",
                    used=self.used_bytes,
                    limit=bound,
                )
                error.retry_seconds = RETRY_SECONDS if size_bytes <= bound else None
                raise error
            self._whole.reserve(size_bytes, purpose)
            self.used_bytes += size_bytes
        return Reservation(self, size_bytes)

    def _give_back(self, size_bytes: int) -> None:
        super()._give_back(size_bytes)
        self._whole._give_back(size_bytes)
