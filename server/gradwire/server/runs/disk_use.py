"""What the runs of each tenant take of the disk, or may any time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from gradwire.server.access.identity import tenant_of
from gradwire.server.access.ledger import Ledger
from gradwire.server.durability.run_storage import reserved_bytes, storage_of
from gradwire.server.durability.stored_runs import DamagedRun
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import RunSpec
from gradwire.server.runs.creation import Creation


class DiskUse:
    """Counts when it is asked: nothing need be kept up to date, and nothing is counted for who has no quota.

    Args:
        kept: how many snapshots of a run are kept; None: there is no disk.
        runs: those that are there, by name.
        damaged: those that cannot be served, by name.
        creations: of runs that may be on their way.
    """

    def __init__(
        self,
        ledger: Ledger,
        kept: int | None,
        runs: Mapping[str, Run],
        damaged: Mapping[str, DamagedRun],
        creations: Iterable[Creation],
    ) -> None:
        self._ledger = ledger
        self._kept = kept
        self._runs = runs
        self._damaged = damaged
        self._creations = creations
        self.arriving_files: Counter[str] = Counter()
        """Bytes of files that are being imported, by tenant."""

    def of(self, tenant: str, besides: str = "") -> int:
        """Bytes of a tenant's runs, those that are on their way there too; 0 where it has no quota. Args: besides: the
        name of a run that is there and does not count."""
        if self._kept is None or self._ledger.disk_limit(tenant) is None:
            return 0
        names = {name for name in {*self._runs, *self._damaged} if tenant_of(name) == tenant and name != besides}
        total = sum(self._damaged[name].disk_bytes for name in names if name in self._damaged)
        for name in names:
            storage = storage_of(self._runs[name]) if name in self._runs else None
            total += 0 if storage is None else storage.disk_bytes
        for creation in list(self._creations):
            spec = creation.run.spec
            arriving = not creation.run.ended and self._runs.get(spec.name) is not creation.run
            if arriving and tenant_of(spec.name) == tenant:
                total += self._reserved_bytes(spec)
        return total

    def require_run(self, spec: RunSpec) -> None:
        """Raises QuotaExceeded where a new run, in the place of one of its name that is there, would be too much."""
        tenant = tenant_of(spec.name)
        self._ledger.require_disk(tenant, self.of(tenant, spec.name), self._reserved_bytes(spec), "the run")

    def require(self, tenant: str, more: int, what: str) -> None:
        """Raises QuotaExceeded where ``more`` bytes would be too much. Args: what: would take them."""
        self._ledger.require_disk(tenant, self.of(tenant), more, what)

    def is_crowded(self, run: Run) -> bool:
        """Whether the run's tenant takes more than it may."""
        tenant = tenant_of(run.spec.name)
        limit = self._ledger.disk_limit(tenant)
        return limit is not None and self.of(tenant) > limit

    def _reserved_bytes(self, spec: RunSpec) -> int:
        return 0 if self._kept is None else reserved_bytes(spec, self._kept)
