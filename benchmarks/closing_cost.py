"""What it costs to close a round, without the wire: how near is it to the speed of memory?

The server's own code closes rounds of contributions that have arrived: it combines them, sums the squares of what comes
out, and does the step. The floor is a copy of as many bytes as no way to do it can avoid: each gradient is read once,
and parameters and state are read and written once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.backend import FLOAT32, Backend
from benchmarks.measure import Timing, interleave, timed
from gradwire.server.devices.base import DeviceArray
from gradwire.server.engine.applied_round import AppliedRound
from gradwire.server.engine.block import BlockHeader, Contribution
from gradwire.server.engine.run import Run
from gradwire.server.engine.shared import SharedRun
from gradwire.server.engine.spec import RunSpec
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.optimizers.adam import AdamHyperparameters, EpsilonPlacement
from gradwire.server.rounds.closing import close_round, combine
from gradwire.server.rounds.leases import AttachShared
from gradwire.server.rounds.rounds import Rounds, rounds_of
from gradwire.server.rounds.staged import StagedContribution
from gradwire.wire.layout import Layout

TARGET = 1.3
"""Closing may take this many times the floor."""

ADAM = AdamHyperparameters(eps=1e-8, amsgrad=False, epsilon_placement=EpsilonPlacement.PLAIN)
STATE_BYTES = 24
"""That a step reads and writes of parameters and two slots, for each element."""

COPY, CLOSE = "a copy of the same bytes", "closing a round"
COMBINE = "of that: combining, with sums of squares"
HEADER = ("", "workers", "median [middle half]", "x floor")


@dataclass(frozen=True)
class Result:
    """What closing costs with so many contributions of ``elements`` float32."""

    workers: int
    elements: int
    timings: dict[str, Timing]
    difference: float
    """Largest |closed - computed here| of the parameters after one round."""

    @property
    def ratio(self) -> float:
        return self.timings[CLOSE].ratio(self.timings[COPY])

    @property
    def on_target(self) -> bool:
        return self.ratio <= TARGET

    @property
    def same(self) -> bool:
        return self.difference < 1e-6

    def rows(self) -> list[list[str]]:
        floor = self.timings[COPY]
        return [
            [name, str(self.workers), timing.milliseconds(), f"{timing.ratio(floor):.2f}"]
            for name, timing in self.timings.items()
        ]

    def to_json(self) -> dict[str, object]:
        return {
            "workers": self.workers,
            "elements": self.elements,
            "closing_to_floor": self.ratio,
            "largest_difference": self.difference,
            "timings": {name: timing.to_json() for name, timing in self.timings.items()},
        }


class Site:
    """A shared run in this process, with contributions of all its workers, which stay where they are."""

    def __init__(self, loop: asyncio.AbstractEventLoop, run: Run, rounds: Rounds, workers: int) -> None:
        self._loop = loop
        self._run = run
        self._rounds = rounds
        attachments = [AttachShared(f"rank-{rank}") for rank in range(workers)]
        self._holds = [loop.run_until_complete(rounds.attach(each, lambda error: None))[0] for each in attachments]
        self._stagings = [rounds.stagings.take() for _ in attachments]

    @property
    def gradients(self) -> list[DeviceArray]:
        """``[1, elements]`` each."""
        return [staging.array for staging in self._stagings]

    def close_round(self) -> None:
        """One more."""
        run, rounds = self._run, self._rounds
        contributions = self.contributions()
        applied = AppliedRound(run.rounds + 1, "QUORUM", "", tuple(each.part for each in contributions))
        closing = close_round(run, rounds.generations, rounds.stagings, run.epoch, applied, contributions)
        self._loop.run_until_complete(closing)
        rounds.generations.publish()

    def combine(self) -> None:
        """What `close_round` begins with."""
        combine(self._run, self._rounds.stagings, self.contributions())

    def contributions(self) -> list[StagedContribution]:
        says = Contribution(weight=1.0, base_epoch=self._run.epoch, base_step=self._run.step)
        header, sequence = BlockHeader(contribution=says), self._run.rounds + 1
        answer: asyncio.Future[Any] = self._loop.create_future()
        return [
            StagedContribution(hold, sequence, header, staging, 0, answer=answer)
            for hold, staging in zip(self._holds, self._stagings, strict=True)
        ]


@contextmanager
def site(backend: Backend, workers: int, elements: int) -> Iterator[tuple[Run, Site]]:
    """A run of Adam in torch's form, parameters all zero, gradients of each worker the same small vector many times."""
    options = SharedRun(max_workers=workers)
    spec = RunSpec("runs/x", Layout([[("w", (elements,))]]), FLOAT32, (ADAM,), shared=options)
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as executor:
        run = Run(spec, backend.device, MemoryBudget(2**40), executor)

        async def make() -> Rounds:
            return rounds_of(run)

        made = Site(loop, run, loop.run_until_complete(make()), workers)
        for rank, gradient in enumerate(made.gradients):
            pattern = np.random.default_rng(rank).random(4096, np.float32) + np.float32(0.25)
            backend.device.write(gradient, 0, np.resize(pattern, (1, elements)))
        yield run, made
        loop.close()


def run(backend: Backend, workers: int, elements: int, rounds: int) -> Result:
    """Measures it."""
    with site(backend, workers, elements) as (shared, place):
        floor = backend.copier((4 * workers + STATE_BYTES) * elements // 2)
        place.close_round()
        # Adam's first step from zero: the learning rate, against the sign, but for eps.
        mean = sum(backend.download(gradient).astype(np.float64) for gradient in place.gradients) / workers
        difference = float(np.abs(backend.download(shared.state.params) + ADAM.lr * mean / (mean + ADAM.eps)).max())
        del mean
        contenders: dict[str, Callable[[], object]] = {
            COPY: floor,
            CLOSE: place.close_round,
            COMBINE: place.combine,
        }
        timings = interleave({name: timed(call) for name, call in contenders.items()}, rounds, warm_up=2)
    return Result(workers, elements, timings, difference)
