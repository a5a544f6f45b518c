"""Runs that come and go."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc

from gradwire.client import GradwireError, RunNotFound, connect
from tests.robustness.model import Block, Operation, Reference, Shape, Violation, Write
from tests.robustness.trainer import Counts, Trainer, World


@dataclass
class Churn:
    """Runs that come and go: each is created, trained, written to, and deleted when the next one is there."""

    world: World
    seed: int
    trainers: list[Trainer] = field(default_factory=list)
    gone: list[Shape] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    _made: int = 0

    @property
    def story(self) -> str:
        return "\n".join(trainer.story for trainer in self.trainers)

    def turn(self) -> None:
        """Raises Violation."""
        if not self.trainers or len(self.trainers[-1].applied) >= 4:
            if len(self.trainers) >= 2:
                self._delete(self.trainers[0])
                return
            name = f"churn-{self._made}"
            shape = Shape(name, self.durability_of(name), self.seed + self._made, size=8)
            self._made += 1
            self.trainers.append(Trainer(self.world, shape, self._script(shape)))
        trainer = self.trainers[-1]
        trainer.turn()
        self.counts.acknowledged += trainer.counts.acknowledged
        self.counts.unknown += trainer.counts.unknown
        trainer.counts = Counts()

    @staticmethod
    def durability_of(name: str) -> str:
        """Of one of these runs, by its name; JOURNAL for any other."""
        number = name.removeprefix("churn-")
        return "SNAPSHOT" if number != name and int(number) % 2 else "JOURNAL"

    @staticmethod
    def _script(shape: Shape) -> Iterator[Operation]:
        chance = random.Random(shape.seed)
        while True:
            yield Block(chance.getrandbits(48), chance.choice((1, 2)))
            yield Write(chance.getrandbits(48), partial=chance.random() < 0.5)

    def _delete(self, trainer: Trainer) -> None:
        try:
            # It may be gone after an earlier attempt whose outcome was not known.
            with connect(self.world.target) as server, contextlib.suppress(RunNotFound):
                server.delete_run(trainer.shape.name)
        except (GradwireError, grpc.RpcError, ValueError):
            self.counts.unknown += 1
            return
        trainer._drop()
        self.trainers.remove(trainer)
        self.gone.append(trainer.shape)
        self.counts.acknowledged += 1

    def die(self) -> None:
        """See `Trainer.die`."""
        for trainer in self.trainers[-1:]:
            trainer.die()

    def check(self, reference: Reference) -> None:
        """Raises Violation."""
        for trainer in list(self.trainers):
            if not trainer._created:
                continue
            if not self._exists(trainer):
                continue
            trainer.check(reference)
        with connect(self.world.target) as server:
            names = {run.name for run in server.list_runs()}
        for shape in self.gone:
            if shape.name in names:
                raise Violation(f"{shape.name} was deleted, and is back")
            reference.forget(shape)

    def _exists(self, trainer: Trainer) -> bool:
        """Whether it is there; an attempt to delete it may have been successful without an answer."""
        with connect(self.world.target) as server:
            there = trainer.shape.name in {run.name for run in server.list_runs()}
        if not there and trainer is not self.trainers[-1] and len(self.trainers) >= 2:
            self.trainers.remove(trainer)
            self.gone.append(trainer.shape)
        elif not there:
            raise Violation(f"{trainer.shape.name} is gone")
        return there

    def settled(self) -> None:
        for trainer in self.trainers:
            trainer.settled()

    def close(self) -> None:
        for trainer in self.trainers:
            trainer.close()
