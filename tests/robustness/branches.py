"""A run that is saved, put back, forked, exported and imported while its server is killed."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc

from gradwire.client import GradwireError, Run, RunDamaged, RunNotFound, Server, SnapshotInfo, connect
from tests.robustness.model import Operation, Reference, Shape, Violation, fingerprint
from tests.robustness.trainer import RETRY, Counts, Trainer, World

_BRANCHES = 3
_SNAPSHOTS = 30


def steps_of(history: list[Operation]) -> int:
    """The run's step after these."""
    return sum(operation.steps for operation in history)


class Trunk(Trainer):
    """A trainer whose run may have been put back by its own client."""

    back_to: list[Operation] | None = None
    """What is left of ``applied`` where a request to put it back, whose outcome is not known, was heard."""

    def put_back(self, history: list[Operation]) -> None:
        """The run is at ``history``, which ``applied`` begins with."""
        self.applied = list(history)
        self._floor = min(self._floor, len(history))
        self._current = False
        self.back_to = None

    def _append(self, operation: Operation) -> None:
        super()._append(operation)
        self.back_to = None

    def _roll_back(self, step: int, told: bool) -> None:
        if self.back_to is not None and step == steps_of(self.back_to):
            self.put_back(self.back_to)
        else:
            super()._roll_back(step, told)


@dataclass
class Branch:
    """Another run with a history of the trunk's."""

    name: str
    history: list[Operation]
    there: bool = False
    """It was acknowledged, or has been seen."""
    leaving: bool = False
    """Its deletion has been asked for, and nobody has answered."""


@dataclass
class Branches:
    """The trunk and what was made of it. Trunk and branches are journaled: what is acknowledged is never lost."""

    world: World
    seed: int
    counts: Counts = field(default_factory=Counts)
    branches: list[Branch] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    _snapshots: list[tuple[SnapshotInfo, list[Operation]]] = field(default_factory=list)
    _made: int = 0
    _saved: int = 0
    _turns: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(f"branches {self.seed}")
        self.trunk = Trunk(self.world, Shape("trunk", "JOURNAL", self.seed, size=12))

    @property
    def trainers(self) -> list[Trainer]:
        return [self.trunk]

    @property
    def story(self) -> str:
        return self.trunk.story

    def turn(self) -> None:
        """Some steps, then something else. Raises Violation."""
        trunk = self.trunk
        run = trunk._run
        if run is None or trunk._pending is not None or self._turns > 0:
            self._turns -= 1
            trunk.turn()
            self.counts.acknowledged += trunk.counts.acknowledged
            self.counts.unknown += trunk.counts.unknown
            trunk.counts.acknowledged = trunk.counts.unknown = 0
            return
        self._turns = self._chance.randint(1, 4)
        action = self._chance.choice(self._possible())
        trunk.note(action.__name__)
        try:
            action(run)
        except (GradwireError, grpc.RpcError, ValueError) as error:
            trunk.note(f"not answered: {error!r}"[:300])
            if isinstance(error, (RunNotFound, RunDamaged)):
                trunk._gone(error)
            self.counts.unknown += 1
            trunk._drop()
        else:
            self.counts.acknowledged += 1

    def _possible(self) -> list[Callable[[Run], None]]:
        # Of those that the trunk was put back from before, the history is no longer the beginning of the trunk's.
        applied = self.trunk.applied
        self._snapshots = [pair for pair in self._snapshots if applied[: len(pair[1])] == pair[1]]
        found: list[Callable[[Run], None]] = [self._save] if self._saved < _SNAPSHOTS else []
        found += [self._fork, self._carry] if len(self.branches) < _BRANCHES else [self._delete]
        if any(steps_of(history) < self.trunk.step for _, history in self._snapshots):
            found.append(self._put_back)
        return found

    def _save(self, run: Run) -> None:
        info = run.save_snapshot("of the trunk")
        self._expect(info.step, self.trunk.applied, "a snapshot")
        self._saved += 1
        self._snapshots.append((info, list(self.trunk.applied)))
        self.trunk._floor = len(self.trunk.applied)

    def _put_back(self, run: Run) -> None:
        trunk = self.trunk
        choices = [pair for pair in self._snapshots if steps_of(pair[1]) < trunk.step]
        info, history = self._chance.choice(choices)
        trunk.back_to = history
        self._expect(run.roll_back(info), history, "a run that was put back")
        trunk.put_back(history)

    def _fork(self, run: Run) -> None:
        info, history = self._chance.choice([(None, list(self.trunk.applied)), *self._snapshots])
        branch = self._branch(history)
        fork = run.fork(branch.name, snapshot=info, retry=RETRY)
        self._expect(fork.step_count, history, "a fork")
        branch.there = True
        fork.close()

    def _carry(self, run: Run) -> None:
        """To a file, and from it to another run."""
        branch = self._branch(list(self.trunk.applied))
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "trunk.safetensors"
            self._expect(run.export(file), branch.history, "an exported file")
            assert self.trunk._connection is not None
            imported = self.trunk._connection.import_run(branch.name, file, durability="JOURNAL", retry=RETRY)
        self._expect(imported.step_count, branch.history, "an imported run")
        branch.there = True
        imported.close()

    def _branch(self, history: list[Operation]) -> Branch:
        branch = Branch(f"branch-{self._made}", history)
        self._made += 1
        self.branches.append(branch)
        return branch

    def _delete(self, run: Run) -> None:
        branch = self.branches[0]
        asked_before, branch.leaving = branch.leaving, True
        assert self.trunk._connection is not None
        try:
            self.trunk._connection.delete_run(branch.name)
        except RunNotFound:
            if branch.there and not asked_before and not self.world.damaged:
                raise Violation(f"{branch.name} was acknowledged, and is gone") from None
        self.branches.remove(branch)
        self.gone.append(branch.name)

    def _expect(self, step: int, history: list[Operation], what: str) -> None:
        if step != steps_of(history) and not self.world.damaged:
            raise Violation(f"{what} of the trunk is at step {step}; expected {steps_of(history)}")

    # --- when nothing happens ----------------------------------------------------------------------------------------

    def check(self, reference: Reference) -> None:
        """Compares the trunk and all branches with their histories. Raises Violation."""
        self.trunk.check(reference)
        with connect(self.world.target) as server:
            names = {run.name for run in server.list_runs()}
            for branch in list(self.branches):
                if branch.name in names:
                    self._compare(server, branch, reference)
                elif branch.there and not branch.leaving and not self.world.damaged:
                    raise Violation(f"{branch.name} was acknowledged, and is gone")
                else:
                    self.branches.remove(branch)
                    self.gone.append(branch.name)
        for name in self.gone:
            if name in names:
                raise Violation(f"{name} was deleted, or was never there, and is back")
            reference.forget(replace(self.trunk.shape, name=name))

    def _compare(self, server: Server, branch: Branch, reference: Reference) -> None:
        try:
            run = server.attach(branch.name, takeover=True, retry=RETRY)
        except RunDamaged:
            if self.world.damaged:
                return
            raise
        found = fingerprint(run)
        run.close()
        expected = reference.after(replace(self.trunk.shape, name=branch.name), branch.history)
        if found != expected:
            raise Violation(f"{branch.name}: the server holds {found}; its history gives {expected}")
        branch.there, branch.leaving = True, False

    def die(self) -> None:
        """See `Trainer.die`."""
        self.trunk.die()

    def settled(self) -> None:
        self.trunk.settled()

    def close(self) -> None:
        self.trunk.close()
