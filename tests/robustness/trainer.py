"""A client that trains one run through whatever happens, and knows what must have become of it."""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from gradwire.client import (
    GradwireError,
    RetryPolicy,
    Run,
    RunAlreadyExists,
    RunDamaged,
    RunNotFound,
    RunRolledBack,
    Server,
    connect,
)
from tests.robustness.model import (
    Block,
    Operation,
    Reference,
    Shape,
    Violation,
    Write,
    apply,
    bytes_of,
    fingerprint,
    operations,
    written_by,
)

RETRY = RetryPolicy(deadline_seconds=15.0, initial_backoff_seconds=0.02, max_backoff_seconds=0.2)
SETTLE_SECONDS = 60.0


@dataclass
class World:
    """What trainers must know of their surroundings."""

    target: str
    direct: str
    """Where nothing stands in between."""
    log: Path
    """Of all servers of the episode."""
    power_cuts: int = 0
    """How often something was lost that had not been flushed."""
    life_begins_at: int = 0
    """Where the log of the present server begins in the file."""
    lives: int = 0
    """Servers so far; they are numbered from 1."""
    orderly: set[int] = field(default_factory=set)
    """Servers that have ended in order."""
    damaged: bool = False
    """Files have been damaged: acknowledged steps may be gone, if that is said."""

    def said(self, text: str, since: int = 0) -> bool:
        """Whether some server has logged it, ``since`` a place in the file."""
        return text in self.log.read_bytes()[since:].decode(errors="replace")

    def resumed(self, run: str) -> list[int]:
        """The steps from which servers have said that a run goes on, after they had missed something of it."""
        said = re.findall(rf"{re.escape(run)} goes on from step (\d+):", self.log.read_text(errors="replace"))
        return sorted({int(step) for step in said})


@dataclass
class Counts:
    """What has happened to a trainer."""

    acknowledged: int = 0
    by_lane: int = 0
    """Blocks among them whose messages have gone by a lane."""
    unknown: int = 0
    """Operations whose outcome the client was not told."""
    rolled_back: int = 0
    restarts: int = 0
    """Clients that went without a word and came back with the same worker id."""


class Trainer:
    """One worker of one run. ``applied`` is the run's history as the model has it."""

    def __init__(self, world: World, shape: Shape, ops: Iterator[Operation] | None = None) -> None:
        self.world = world
        self.shape = shape
        self.applied: list[Operation] = []
        self.refused = False
        """Its files were damaged, and the server says that it cannot serve it."""
        self.counts = Counts()
        self._operations = operations(shape) if ops is None else ops
        self._pending: Operation | None = None
        self._created = False
        self._floor = 0
        """So many operations cannot be lost, whatever the run's durability."""
        self._power_cuts = 0
        self._life_began_at = 0
        self._chance = random.Random(shape.seed)
        self._connection: Server | None = None
        self._run: Run | None = None
        self._current = False
        """Whether ``run.params`` are those after all that was applied."""
        self._dying = threading.Event()
        self._events: deque[str] = deque(maxlen=40)
        """What has happened lately, for the report of a violation."""

    def note(self, event: str) -> None:
        self._events.append(f"{time.strftime('%H:%M:%S')}{time.time() % 1:.3f} at {self.step}: {event}")

    @property
    def story(self) -> str:
        """What has happened lately, in lines."""
        return "\n".join([f"--- {self.shape.name}", *self._events])

    @property
    def step(self) -> int:
        """The run's, as the model has it."""
        return sum(operation.steps for operation in self.applied)

    def die(self) -> None:
        """The client's connection is gone, in the middle of whatever it does; from any thread."""
        connection = self._connection
        if connection is not None:
            self._dying.set()
            connection._link.channel.close()

    def turn(self) -> None:
        """Does the next thing. Raises Violation."""
        run = self._run
        if self.refused:
            time.sleep(0.05)
            return
        if run is None:
            self._attach()
            return
        if self._pending is None and self._chance.random() < 0.02:
            self._drop()
            return
        if self._pending is None and self.shape.durability == "SNAPSHOT" and self._chance.random() < 0.02:
            self._save(run)
            return
        operation = self._pending = next(self._operations)
        self.note(f"{operation}")
        try:
            step = apply(run, self.shape, operation)
        except RunRolledBack as error:
            self.note(f"told: {error}")
            self._pending = None
            self._with_step(run, told=True)
            return
        except GradwireError as error:
            self._failed(error)
            return
        except (ValueError, grpc.RpcError) as lost:
            self.note(f"lost: {lost!r}"[:200])
            if not self._dying.is_set():
                raise
            self.counts.unknown += 1
            self._drop()
            return
        if isinstance(operation, Write):
            # The client does not look at the step of a write's answer; a server that had gone back may have given it.
            self.counts.acknowledged += 1
            self._with_step(run, told=True)
            return
        self._acknowledged(operation, step)

    def _acknowledged(self, operation: Operation, step: int) -> None:
        expected = self.step + operation.steps
        if step != expected:
            raise Violation(
                f"{self.shape.name}: {operation} was answered with step {step}; expected {expected}"
                + (": something was applied twice" if step > expected else "")
            )
        self._append(operation)
        self._current = isinstance(operation, Block) and operation.returns != "none"
        self.counts.acknowledged += 1
        stream = None if self._run is None else self._run._attachment.stream
        self.counts.by_lane += stream is not None and stream.lane is not None
        self._power_cuts = self.world.power_cuts
        self._life_began_at = self.world.life_begins_at

    def _append(self, operation: Operation) -> None:
        self.applied.append(operation)
        self._pending = None
        if isinstance(operation, Write):
            self._floor = len(self.applied)

    def _failed(self, error: GradwireError) -> None:
        self._current = False
        self.note(f"failed, applied {error.applied}: {error!r}")
        if isinstance(error, (RunNotFound, RunDamaged)):
            self._gone(error)
            return
        if error.applied is False:
            self._pending = None  # and so it must turn out to be: see `_acknowledged`
            time.sleep(0.02)
            return
        self.counts.unknown += 1
        self._drop()

    def _gone(self, error: GradwireError) -> None:
        """The run is there no more. Raises Violation, unless its files were damaged and that is what is said."""
        if not (self.world.damaged and isinstance(error, RunDamaged)):
            raise Violation(f"{self.shape.name} at step {self.step} is gone: {error}") from error
        self.refused = True
        self._drop()

    def _save(self, run: Run) -> None:
        with contextlib.suppress(GradwireError, grpc.RpcError, ValueError):
            info = run.save_snapshot("saved")
            if info.step == self.step:
                self._floor = len(self.applied)
            else:
                self._with_step(run, told=True)  # by another server, which had gone back

    # --- the way back ------------------------------------------------------------------------------------------------

    def _drop(self) -> None:
        """As the end of a client that nobody hears of."""
        connection, self._connection, self._run = self._connection, None, None
        self._current = False
        if connection is not None:
            self.counts.restarts += 1
            connection._link.channel.close()
        self._dying.clear()

    def _attach(self) -> None:
        """One attempt."""
        shape = self.shape
        worker: dict[str, Any] = {"worker_id": f"worker of {shape.name}", "takeover": True, "retry": RETRY}
        try:
            target = self.world.direct if shape.near else self.world.target
            self._connection = connect(target, shared_memory=shape.near)
            if self._created:
                run = self._connection.attach(shape.name, **worker)
            else:
                run = self._connection.create_run(
                    shape.name, shape.initial(), shape.optimizer(), durability=shape.durability, **worker
                )
                self._created = True
                if run.step_count:
                    raise Violation(f"{shape.name} is new, and at step {run.step_count}")
        except RunAlreadyExists:
            self._created = True  # by an attempt of ours whose outcome was not known
            self._drop()
            return
        except (RunNotFound, RunDamaged) as error:
            if self._created or isinstance(error, RunDamaged):  # of an attempt of ours whose outcome was not known
                self._gone(error)
            self._drop()
            return
        except (GradwireError, grpc.RpcError, ValueError):
            self._drop()
            time.sleep(0.02)
            return
        self._run = run
        self._with_step(run, told=False)

    def _with_step(self, run: Run, told: bool) -> None:
        """Finds out, from the run's step, what became of what was not answered. Nothing else can change it now."""
        try:
            if told:
                run.refresh()
            step = run.step_count
            pending, expected = self._pending, self.step
            if isinstance(pending, Write):
                written = bytes_of(written_by(self.shape, pending))
                found = bytes_of(run.read())
                applied = all(found[name] == value for name, value in written.items())
            else:
                applied = pending is not None and step == expected + pending.steps
        except (GradwireError, grpc.RpcError, ValueError):
            self._drop()
            return
        self.note(f"the server is at step {step}, epoch {run._attachment.epoch}; pending {pending}")
        if isinstance(pending, Write) and applied and step < expected:
            self._roll_back(step, told)  # first, and then somebody wrote: what was written is never lost
            expected = step
        if pending is not None and applied:
            self._append(pending)
            expected = self.step
        self._pending = None
        if step > expected:
            raise Violation(f"{self.shape.name} is at step {step}; expected {expected}: something was applied twice")
        if step < expected:
            self._roll_back(step, told)

    def _roll_back(self, step: int, told: bool) -> None:
        """Takes back what a crash may take back. Raises Violation for anything else."""
        name = self.shape.name
        kept = len(self.applied)
        while kept and sum(operation.steps for operation in self.applied[:kept]) > step:
            kept -= 1
        what = f"{name}, {self.shape.durability}, was acknowledged at step {self.step} and is at step {step}"
        if sum(operation.steps for operation in self.applied[:kept]) != step:
            raise Violation(f"{what}, in the middle of a block")
        if not self.world.damaged:
            if self.shape.durability == "JOURNAL":
                raise Violation(f"{what}: acknowledged steps are lost")
            if kept < self._floor:
                raise Violation(f"{what}, before a snapshot that had been acknowledged")
        # Without its mark, which a full disk does not take, a server cannot know what it had acknowledged.
        unmarked = self.world.said("cannot note what has been acknowledged", self._life_began_at)
        sure = self.world.power_cuts == self._power_cuts and not unmarked
        if sure and not told and not self.world.said(f"{name} goes on from step {step}:"):
            raise Violation(f"{what}, and nobody has said so")
        self.counts.rolled_back += 1
        del self.applied[kept:]
        self._floor = min(self._floor, kept)

    # --- when nothing happens ----------------------------------------------------------------------------------------

    def settle(self) -> Run:
        """Goes on until the model and the client agree on what was applied. Raises Violation."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._run is None or self._pending is not None:
            if time.monotonic() > deadline:
                raise Violation(f"{self.shape.name} cannot be reached although nothing is done to its server any more")
            if self._run is not None:
                self._drop()
            self._attach()
        return self._run

    def check(self, reference: Reference) -> None:
        """Compares the run on the server, bit for bit, with its history applied elsewhere. Raises Violation."""
        run = self.settle()
        self._with_step(run, told=True)  # a server that was started meanwhile may have gone back
        run = self.settle()
        found = fingerprint(run)
        for history in self._histories():
            if reference.after(self.shape, history) == found:
                self.applied = history
                break
        else:
            expected = reference.after(self.shape, self.applied)
            raise Violation(
                f"{self.shape.name}: the server holds {found}; {len(self.applied)} operations give {expected}"
            )
        if self._current and not run.stale and bytes_of(run.params) != reference.params(self.shape, self.applied):
            raise Violation(f"{self.shape.name}: the client's parameters are not those of step {self.step}")

    def _histories(self) -> Iterator[list[Operation]]:
        """What the run may have come by. With damaged files, and only where it was said that it goes on from a step,
        writes that came after that step and before the next block may be missing: no count of steps tells. One that its
        client tried again meanwhile came after those that are, and is there.
        """
        histories = [self.applied]
        for step in self.world.resumed(self.shape.name) if self.world.damaged else ():
            for history in list(histories):
                at = 0
                ends = [at := at + operation.steps for operation in history]
                writes = [i for i, end in enumerate(ends) if end == step and isinstance(history[i], Write)]
                histories += [
                    history[:first] + history[last + 1 :] for first in writes for last in writes if first <= last
                ]
        yield from histories

    def settled(self) -> None:
        """The server has ended in order: nothing of what was applied can be lost any more."""
        self._floor = len(self.applied)

    def close(self) -> None:
        """Ends the client in order."""
        if self._connection is not None:
            self._connection.close()
            self._connection = self._run = None
