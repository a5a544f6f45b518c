"""Two workers that take one run from each other, and the order in which their blocks must have been applied."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import grpc

from gradwire.client import GradwireError, Run, RunNotFound, Server, connect
from tests.robustness.model import Block, Reference, Shape, Violation, apply, fingerprint
from tests.robustness.trainer import RETRY, SETTLE_SECONDS, Counts, World

_ORDERS = 64
"""So many orders are tried, where what the workers were told leaves more than one."""


@dataclass
class Applied:
    """A block of one worker that has been applied."""

    block: Block
    end: int | None
    """The run's step after it; None: its answer was lost."""


@dataclass
class Rival:
    """One of the workers. Whether a block was applied it learns from its number when it comes back.

    Args:
        blocks: K is one of these; the other worker has others, so that fewer orders are possible.
    """

    world: World
    shape: Shape
    name: str
    blocks: tuple[int, ...]
    other: Rival | None = None
    """The first of the two is made without; the second one checks for both."""
    applied: list[Applied] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    refused = False
    _pending: Block | None = None
    _connection: Server | None = None
    _run: Run | None = None
    _events: deque[str] = field(default_factory=lambda: deque(maxlen=40))

    def __post_init__(self) -> None:
        self._chance = random.Random(f"{self.shape.seed} {self.name}")
        self._left = 0

    @property
    def story(self) -> str:
        """What has happened lately, in lines."""
        return "\n".join([f"--- {self.shape.name}, {self.name}", *self._events])

    def turn(self) -> None:
        """Does the next thing. Raises Violation."""
        run = self._run
        if run is None:
            self._attach()
            return
        if self._left == 0:
            self._left = self._chance.randrange(1, 8)
            time.sleep(self._chance.uniform(0, 0.1))  # the other one's turn, if it wants
        self._left -= 1
        block = self._pending = Block(self._chance.getrandbits(48), self._chance.choice(self.blocks))
        self._events.append(f"{time.time():.3f}: {block}")
        try:
            end = apply(run, self.shape, block)
        except (GradwireError, grpc.RpcError, ValueError) as error:
            self._events.append(f"{time.time():.3f}: {error!r}"[:300])
            self.counts.unknown += 1
            self._drop()
            return
        self.applied.append(Applied(block, end))
        self._pending = None
        self.counts.acknowledged += 1

    def _attach(self) -> None:
        """One attempt: takes the run from whoever has it."""
        options = {"worker_id": self.name, "takeover": True, "retry": RETRY}
        try:
            self._connection = connect(self.world.target)
            if self.other is None and not self.applied:
                shape = self.shape
                run = self._connection.create_run(
                    shape.name,
                    shape.initial(),
                    shape.optimizer(),
                    durability=shape.durability,
                    on_existing="resume",
                    worker_id=self.name,
                    takeover=True,
                    retry=RETRY,
                )
            else:
                run = self._connection.attach(self.shape.name, **options)  # type: ignore[arg-type]
        except (GradwireError, grpc.RpcError, ValueError) as error:
            if isinstance(error, RunNotFound) and self.applied:
                raise Violation(f"{self.shape.name} is gone: {error}") from error
            self._drop()
            time.sleep(0.02)
            return
        self._run = run
        done = run.last_sequence - len(self.applied)
        if done == 1 and self._pending is not None:
            self.applied.append(Applied(self._pending, None))
        elif done != 0:
            raise Violation(
                f"{self.shape.name}: the server knows {run.last_sequence} blocks of {self.name}; expected "
                f"{len(self.applied)}, pending {self._pending}"
            )
        self._pending = None

    def _drop(self) -> None:
        connection, self._connection, self._run = self._connection, None, None
        if connection is not None:
            self.counts.restarts += 1
            connection._link.channel.close()

    def die(self) -> None:
        """See `Trainer.die`."""
        connection = self._connection
        if connection is not None:
            connection._link.channel.close()

    def settle(self) -> Run:
        """Goes on until it is known what was applied; takes the run. Raises Violation."""
        deadline = time.monotonic() + SETTLE_SECONDS
        self._drop()
        while self._run is None:
            if time.monotonic() > deadline:
                raise Violation(f"{self.shape.name} cannot be reached although nothing is done to its server any more")
            self._attach()
        return self._run

    def check(self, reference: Reference) -> None:
        """Looks for an order of all blocks that gives what the server holds. Raises Violation."""
        run = self.settle()
        if self.other is None:
            return
        found = fingerprint(run)
        orders = list(islice(_orders(self.other.applied, self.applied, found.step), _ORDERS))
        if not any(reference.after(self.shape, order) == found for order in orders):
            raise Violation(f"{self.shape.name}: none of {len(orders)} possible orders of its blocks gives {found}")

    def settled(self) -> None:
        """Nothing is ever lost of a journaled run."""

    def close(self) -> None:
        """Ends the client in order."""
        if self._connection is not None:
            self._connection.close()
            self._connection = self._run = None


def rivals(world: World, shape: Shape) -> tuple[Rival, Rival]:
    """Both workers of one run."""
    first = Rival(world, shape, "first", (1, 2, 3))
    return first, Rival(world, shape, "second", (4, 5), other=first)


def _orders(first: list[Applied], second: list[Applied], steps: int) -> Iterator[list[Block]]:
    """All ways to merge two histories, so that every block ends at the step that its worker was told."""
    pending: list[tuple[int, int, int, list[Block]]] = [(0, 0, 0, [])]
    while pending:
        i, j, step, order = pending.pop()
        if i == len(first) and j == len(second):
            if step == steps:
                yield order
            continue
        # A block whose end is known leaves no choice; nobody else's may take its place.
        for which, (history, index) in enumerate(((first, i), (second, j))):
            if index < len(history):
                one = history[index]
                end = step + one.block.steps
                if one.end in (None, end):
                    pending.append((i + (which == 0), j + (which == 1), end, [*order, one.block]))
