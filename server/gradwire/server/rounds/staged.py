"""A contribution that has arrived whole, and the arrays in which they wait."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from gradwire.server.devices.base import DeviceArray
from gradwire.server.engine.applied_round import Contributed
from gradwire.server.engine.block import BlockHeader, Contribution, Receipt
from gradwire.server.engine.run import Run
from gradwire.server.engine.workers import Holder
from gradwire.server.memory.budget import Reservation
from gradwire.server.rounds.lying import LyingGradient


@dataclass(eq=False)
class Staging:
    """Room for one gradient, ``[1, elements]``."""

    array: DeviceArray
    memory: Reservation


@dataclass(eq=False)
class StagedContribution:
    """One gradient of one worker, checked and clipped as far as that is a matter of it alone."""

    hold: Holder
    """Of the stream on which it came."""
    sequence: int
    header: BlockHeader
    staging: Staging | LyingGradient | None
    """Where its gradient is; None: it adds nothing."""
    received_bytes: int
    skipped: bool = False
    """Its gradient was not finite, and the run skips such."""
    refusal: str = ""
    """Its gradient was not finite, and the run refuses such: what was wrong with it."""
    staleness: int = 0
    answer: asyncio.Future[Receipt] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """What its sender is told; an exception where its round came to nothing because of the server."""

    @property
    def worker_id(self) -> str:
        """Whose it is."""
        return self.hold.worker_id

    @property
    def says(self) -> Contribution:
        """What it says of itself."""
        assert self.header.contribution is not None
        return self.header.contribution

    @property
    def part(self) -> Contributed:
        """Its part in a round."""
        return Contributed(
            self.worker_id,
            self.sequence,
            self.says.weight,
            self.staleness,
            passed=self.staging is None,
            skipped=self.skipped,
            received_bytes=self.received_bytes,
        )


class Stagings:
    """The arrays of one shared run. They outlive their contributions: the next ones are of the same size."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._free: list[Staging] = []
        self._combined: DeviceArray | None = None

    @property
    def combined(self) -> DeviceArray:
        """Where a combined gradient goes; it is part of `RunSpec.memory_bytes`."""
        if self._combined is None:
            spec = self._run.spec
            self._combined = self._run.device.allocate(1, spec.layout.elements, spec.dtype)
        return self._combined

    def take(self) -> Staging:
        """An array that holds anything. Raises MemoryLimitExceeded, QuotaExceeded."""
        if self._free:
            return self._free.pop()
        run, spec = self._run, self._run.spec
        memory = run.budget.reserve(spec.vector_bytes, f"a contribution to {spec.name}")
        try:
            return Staging(run.device.allocate(1, spec.layout.elements, spec.dtype), memory)
        except BaseException:
            memory.release()
            raise

    def give(self, staging: Staging | LyingGradient | None) -> None:
        """It is not needed any more."""
        if isinstance(staging, LyingGradient):
            staging.let_go()
        elif staging is not None:
            self._free.append(staging)

    def keep(self, most: int) -> None:
        """Frees those beyond so many that nobody uses."""
        while len(self._free) > most:
            self._free.pop().memory.release()
