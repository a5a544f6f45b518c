"""Seeded bugs of shared runs, to prove that the harness finds what it is for; see `faulty_server`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gradwire.server.devices.base import DeviceArray
from gradwire.server.durability.restorer import Restorer
from gradwire.server.durability.run_storage import storage_of
from gradwire.server.durability.stored_runs import DamagedRun, StoredRuns
from gradwire.server.engine.run import Run
from gradwire.server.engine.workers import Holder
from gradwire.server.rounds import closing
from gradwire.server.rounds.generations import Generations
from gradwire.server.rounds.leases import Leases
from gradwire.server.rounds.rounds import Rounds
from gradwire.server.rounds.staged import StagedContribution, Stagings
from gradwire.server.store.disk import DiskStore


def count_a_retry_twice() -> None:
    """That a contribution has been answered holds only until its worker attaches anew: sent again, it counts again."""
    attach = Leases.attach

    def forgetful(self: Leases, *arguments: Any) -> Holder:
        holder = attach(self, *arguments)
        if holder.record.receipt is not None:
            holder.record.last_sequence -= 1
            holder.record.receipt = None
        return holder

    Leases.attach = forgetful  # type: ignore[method-assign,assignment]


def apply_a_stale_one() -> None:
    """Whatever arrives is taken, however old."""
    offer = Rounds._offer

    def lenient(self: Rounds, contribution: StagedContribution) -> bool:
        strict = self.options
        self.options = replace(strict, max_staleness=2**60)
        try:
            return offer(self, contribution)
        finally:
            self.options = strict

    Rounds._offer = lenient  # type: ignore[method-assign]


def apply_half_a_round_after_a_crash() -> None:
    """What has come of an open round is kept on disk, and applied at the next start."""
    join, restore = Rounds._join, StoredRuns.restore
    close = Rounds._close

    def place(run: Run) -> Path:
        storage = storage_of(run)
        assert storage is not None
        assert isinstance(storage.store, DiskStore)
        return storage.store.directory / f"open-{run.uid}.npy"

    def kept(self: Rounds, contribution: StagedContribution) -> None:
        join(self, contribution)
        if contribution.staging is not None and not place(self.run).exists():
            np.save(place(self.run), contribution.staging.array)

    async def closed(self: Rounds, *arguments: Any) -> None:
        await close(self, *arguments)
        place(self.run).unlink(missing_ok=True)

    def half(self: StoredRuns, restorer: Restorer) -> Iterator[Run | DamagedRun]:
        for run in restore(self, restorer):
            if isinstance(run, Run) and place(run).exists():
                run.state.params -= 0.05 * np.load(place(run))
                run.step += 1
                run.rounds += 1
                run.version += 1
                place(run).unlink()
            yield run

    Rounds._join, Rounds._close = kept, closed  # type: ignore[method-assign,assignment]
    StoredRuns.restore = half  # type: ignore[method-assign]


def add_in_order_of_arrival() -> None:
    """The contributions of a round are added as they came."""
    join, combine = Rounds._join, closing.combine
    arrivals = itertools.count()

    def stamped(self: Rounds, contribution: StagedContribution) -> None:
        vars(contribution)["arrived"] = next(arrivals)
        join(self, contribution)

    def as_they_came(run: Run, stagings: Stagings, contributions: Sequence[StagedContribution]) -> DeviceArray:
        return combine(run, stagings, sorted(contributions, key=lambda each: vars(each)["arrived"]))

    Rounds._join = stamped  # type: ignore[method-assign]
    vars(closing)["combine"] = as_they_came


def mix_two_rounds_in_an_answer() -> None:
    """A round is written into the vector that others are being answered from."""
    Generations.read = property(lambda self: False)  # type: ignore[method-assign,assignment]


SHARED_BUGS: dict[str, Callable[[], None]] = {
    bug.__name__.replace("_", "-"): bug
    for bug in (
        count_a_retry_twice,
        apply_a_stale_one,
        apply_half_a_round_after_a_crash,
        add_in_order_of_arrival,
        mix_two_rounds_in_an_answer,
    )
}
