"""How much each tenant holds, and whether it may hold more."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from gradwire.server.access.gate import Gate
from gradwire.server.access.pacing import Pace, StreamPace
from gradwire.server.access.quotas import RATES, Quotas
from gradwire.server.memory.budget import RETRY_SECONDS, BudgetShare, MemoryBudget
from gradwire.wire.errors import QuotaExceeded


class Use(NamedTuple):
    """Of one quota."""

    name: str
    used: int
    limit: int


class Ledger:
    """Counts what tenants hold, against the quotas of the access file as it is now.

    Where there is none, or while runs come back from the disk (`enforced` is False), nothing is refused.
    """

    def __init__(self, budget: MemoryBudget, gate: Gate | None) -> None:
        self._budget = budget
        self._gate = gate
        self._shares: dict[str, BudgetShare] = {}
        self._streams: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Of each tenant, by runs."""
        self._paces: dict[str, Pace] = {}
        self.enforced = True

    def pace_of(self, tenant: str) -> Pace | None:
        """How fast it may go; None: there is no access file, so that nothing need be counted."""
        if self._gate is None:
            return None
        if tenant not in self._paces:
            self._paces[tenant] = Pace(lambda: self._quotas(tenant))
        return self._paces[tenant]

    def stream_pace_of(self, tenant: str) -> StreamPace | None:
        """As `pace_of`, for one of its streams."""
        pace = self.pace_of(tenant)
        return None if pace is None else StreamPace(pace, lambda: len(self._streams[tenant]))

    def budget_of(self, tenant: str) -> MemoryBudget:
        """Where the memory of its runs is counted."""
        if self._gate is None:
            return self._budget
        if tenant not in self._shares:
            self._shares[tenant] = BudgetShare(self._budget, "your tenant", lambda: self._quotas(tenant).memory)
        return self._shares[tenant]

    def require_run(self, tenant: str, held: int, more: int, elements: int, tensors: int) -> None:
        """Raises QuotaExceeded unless a tenant that has ``held`` runs may have one of this size, ``more`` than those:
        none where it takes the place of another."""
        quotas = self._quotas(tenant)
        _require("parameters", elements, quotas.parameters, "the run has {used} elements; yours have at most {limit}")
        _require("tensors", tensors, quotas.tensors, "the run has {used} tensors; yours have at most {limit}")
        _require(
            "runs",
            held + more,
            quotas.runs if more else None,
            "that would be run number {used} of yours; expected at most {limit}",
        )

    def require_disk(self, tenant: str, used: int, more: int, what: str) -> None:
        """Raises QuotaExceeded unless a tenant whose runs take ``used`` bytes of the disk may have ``more``.

        Args:
            what: would take them; for the refusal.
        """
        limit = self.disk_limit(tenant)
        if limit is not None and used + more > limit:
            error = QuotaExceeded(
                f"quota 'disk': {what} may take {more} bytes, and {max(0, limit - used)} of your {limit} are free",
                quota="disk",
                used=used,
                limit=limit,
                needed_bytes=more,
            )
            error.retry_seconds = RETRY_SECONDS if more <= limit else None
            raise error

    def disk_limit(self, tenant: str) -> int | None:
        """What its runs may take of the disk; None: all that there is."""
        return self._quotas(tenant).disk

    @contextmanager
    def stream(self, tenant: str, run: str) -> Iterator[None]:
        """While a stream to one of its runs is open. Raises QuotaExceeded for one too many.

        Another one to the same run is no more: it takes the place of the older one, whose end, after its connection was
        cut, the server may not know of yet.
        """
        open_to = self._streams[tenant]
        _require(
            "streams",
            len({*open_to, run}),
            self._quotas(tenant).streams,
            "that would be stream number {used} of yours; expected at most {limit} at a time",
        )
        open_to[run] += 1
        try:
            yield
        finally:
            open_to[run] -= 1
            if not open_to[run]:
                del open_to[run]

    def use(self, tenant: str, runs: int, disk: int) -> list[Use]:
        """Of each quota that counts through all runs and has a bound."""
        quotas, memory, pace = self._quotas(tenant), self.budget_of(tenant).used_bytes, self.pace_of(tenant)
        found = [
            ("runs", runs, quotas.runs),
            ("memory", memory, quotas.memory),
            ("disk", disk, quotas.disk),
            ("streams", len(self._streams[tenant]), quotas.streams),
        ]
        if pace is not None:
            rates = [(name, getattr(quotas, name)) for name in RATES]
            found += [(name, pace.level(name, rate), rate) for name, rate in rates if rate is not None]
        return [Use(name, count, limit) for name, count, limit in found if limit is not None]

    def _quotas(self, tenant: str) -> Quotas:
        if self._gate is None or not self.enforced:
            return Quotas()
        return self._gate.quotas.get(tenant, Quotas())


def _require(quota: str, wanted: int, limit: int | None, text: str) -> None:
    if limit is not None and wanted > limit:
        counts = quota in ("runs", "streams")  # through all runs: others may end, which makes none of them smaller
        error = QuotaExceeded(
            f"quota {quota!r}: {text.format(used=wanted, limit=limit)}",
            quota=quota,
            used=wanted - 1 if counts else wanted,
            limit=limit,
        )
        error.retry_seconds = RETRY_SECONDS if counts else None
        raise error
