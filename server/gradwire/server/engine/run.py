"""A run: parameters, optimizer state, and the rules by which one block after another is applied to them."""

from __future__ import annotations

import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import Bools, Device, State
from gradwire.server.engine.activity import Activity, Attached
from gradwire.server.engine.applied_round import AppliedRound
from gradwire.server.engine.block import Receipt
from gradwire.server.engine.gradients import Gradients, non_finite_text
from gradwire.server.engine.run_events import EventKind, RunEvents
from gradwire.server.engine.run_lock import RunLock
from gradwire.server.engine.shared import MAX_WORKERS, Workers
from gradwire.server.engine.spec import Durability, NonFinitePolicy, RunSpec
from gradwire.server.engine.staged_block import StagedBlock, override_text
from gradwire.server.engine.storage import Storage
from gradwire.server.engine.workers import Holder, WorkerRecord
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.metrics.traffic import StreamTotals
from gradwire.server.optimizers.base import Hyperparameters
from gradwire.server.series.run_series import RunSeries
from gradwire.server.series.scalars import Scalar
from gradwire.wire.errors import (
    Draining,
    Fenced,
    GradwireError,
    InternalError,
    NonFiniteGradient,
    RunBusy,
    RunNotFound,
    SequenceMismatch,
)


@dataclass(frozen=True)
class Values:
    """What a step changes of a run: its vectors, how many steps have been applied, to it and to each tensor, and the
    hyperparameters in force."""

    state: State
    step: int
    tensor_steps: npt.NDArray[np.int64]
    groups: tuple[Hyperparameters, ...]
    series: dict[str, Any] | None = None
    """What the run's series are to be, as `RunSeries.to_data` has it; None: as they are, up to ``step``."""


class Prepared(NamedTuple):
    """A block that has passed all checks: what its commit will answer, and what it needs besides the block."""

    receipt: Receipt
    applied: Bools | None
    """Which rows are applied; None: all."""
    sums: npt.NDArray[np.float64]


class Run:
    """One optimisation.

    Methods block and are not safe against each other: call them through ``lock``. What a holder computes early
    from ``state`` needs no lock: writes swap arrays instead of changing them, and a commit belongs to that one holder.
    """

    def __init__(
        self, spec: RunSpec, device: Device, budget: MemoryBudget, executor: Executor, request_id: str = ""
    ) -> None:
        self.spec = spec
        self.request_id = request_id
        self.uid = uuid.uuid4().hex
        self.device = device
        self.budget = budget
        self.lock = RunLock(executor)
        self._reservation = budget.reserve(spec.memory_bytes, f"run {spec.name!r}")
        try:
            self.state: State = device.allocate_state(spec.slots, spec.layout.elements, spec.dtype)
        except BaseException:
            self._reservation.release()
            raise
        self.groups = spec.groups
        self.step = 0
        self.tensor_steps: npt.NDArray[np.int64] = np.zeros(len(spec.layout.names), np.int64)
        self.epoch = 0
        self.version = 0
        """Rises with everything that changes parameters, state or hyperparameters; a plan is worth one version."""
        self.holder: Holder | None = None
        """Of a shared run always None: those who work on it are ``shared_workers``."""
        self.shared_workers: Workers | None = None
        """Of a shared run, once somebody has attached."""
        self.rounds = 0
        """Rounds of a shared run that have been applied."""
        self.ended = ""
        """Why the run is no more; empty: it lives."""
        self.closing = False
        """The server is about to stop and has saved the run, or is about to."""
        self.storage: Storage | None = None
        """How it is stored; None: it is in memory only."""
        self.used_at = time.monotonic()
        """When somebody did anything with the run last; while a worker holds it that is always."""
        self.activity = Activity()
        self.traffic = StreamTotals()
        """What its streams have brought and taken since the server began."""
        self.users = 0
        """Calls about the run that have not ended."""
        self.events = RunEvents()
        self.on_delete: list[Callable[[], object]] = []
        """Called when the run ends: frees what others keep of it."""
        self.series = RunSeries(budget, spec.name)
        """What is logged of it."""
        self._workers: OrderedDict[str, WorkerRecord] = OrderedDict()
        self.has_forgotten = False
        """Whether there have been more workers than are remembered."""

    # --- who holds the run ---------------------------------------------------------------------------------------

    def attach(self, worker_id: str, takeover: bool, on_end: Callable[[GradwireError], None]) -> Holder:
        """Gives the run to a worker; the older stream of the same worker, or the one taken over, is fenced.

        Raises RunBusy when another worker holds it and ``takeover`` is false.
        """
        self.check_attach(worker_id, takeover)
        if self.holder is not None:
            why = "attached again" if self.holder.worker_id == worker_id else f"was replaced by {worker_id}"
            self.events.note(EventKind.FENCED, f"{self.holder.worker_id} {why}", self.step)
        self.fence(f"worker {worker_id!r} has attached to {self.spec.name}")
        self.holder = self.hold(worker_id, on_end)
        self.events.note(EventKind.ATTACHED, worker_id, self.step)
        return self.holder

    def hold(
        self, worker_id: str, on_end: Callable[[GradwireError], None], kept: Collection[str] = frozenset()
    ) -> Holder:
        """A hold for a worker, whose record is made where there is none; nobody is asked, and nobody fenced.

        Args:
            kept: workers who are not forgotten.
        """
        perhaps_forgotten = self.has_forgotten and worker_id not in self._workers
        record = self._record(worker_id, kept)
        return Holder(worker_id, self.epoch, record, self.step, on_end, perhaps_forgotten)

    def _record(self, worker_id: str, kept: Collection[str] = frozenset()) -> WorkerRecord:
        """What is remembered of a worker, the newest now; another one is forgotten where there are too many."""
        record = self._workers.setdefault(worker_id, WorkerRecord())
        self._workers.move_to_end(worker_id)
        if len(self._workers) > MAX_WORKERS:
            others = (name for name in self._workers if name not in kept and name != worker_id)
            longest_away = next(others, None)
            if longest_away is not None:
                self._workers.pop(longest_away).forget_result()
                self.has_forgotten = True
        return record

    def check_attach(self, worker_id: str, takeover: bool) -> None:
        """Raises what `attach` would."""
        self.require_alive()
        if self.holder is not None and self.holder.worker_id != worker_id and not takeover:
            raise RunBusy(
                f"worker {self.holder.worker_id!r} is attached to {self.spec.name}; ask for a takeover to replace it",
                attached_worker_id=self.holder.worker_id,
            )

    def detach(self, holder: Holder) -> None:
        """Ends a hold, if it is still the current one."""
        if self.holder is holder:
            self.holder = None
            self.events.note(EventKind.DETACHED, holder.worker_id, self.step)
            self.note_use()

    def note_use(self) -> None:
        """Somebody uses the run."""
        self.used_at = time.monotonic()

    @property
    def in_use(self) -> bool:
        """Whether a worker is attached, or a call about the run has not ended."""
        return bool(self.attached_workers or self.users)

    @property
    def attached_workers(self) -> int:
        """How many workers have a stream now."""
        shared = 0 if self.shared_workers is None else self.shared_workers.attached
        return shared + (self.holder is not None)

    @property
    def holders(self) -> Sequence[Attached]:
        """Of the workers who have a stream now."""
        if self.shared_workers is not None:
            return self.shared_workers.holders
        return [] if self.holder is None else [self.holder]

    @property
    def expired(self) -> bool:
        """Whether nobody has used it for its time to live."""
        ttl_seconds = self.spec.ttl_seconds
        if ttl_seconds is None or self.in_use:
            return False
        return time.monotonic() - self.used_at >= ttl_seconds

    def fence(self, why: str) -> None:
        """Raises the epoch and ends the current hold, or all of them."""
        self.epoch += 1
        self._end_holds(Fenced(f"{why}; this stream no longer holds it", applied=None, epoch=self.epoch))

    def _end_holds(self, error: GradwireError) -> None:
        holder, self.holder = self.holder, None
        if holder is not None:
            holder.on_end(error)
        if self.shared_workers is not None:
            self.shared_workers.end(error)

    def require_holder(self, holder: Holder) -> None:
        """Raises Fenced unless ``holder`` still holds the run, RunNotFound when the run is gone."""
        self.require_alive()
        if self.holder is not holder if self.spec.shared is None else self.epoch != holder.epoch:
            raise Fenced(f"this stream no longer holds {self.spec.name}", epoch=self.epoch)

    def require_alive(self) -> None:
        """Raises RunNotFound when the run has ended."""
        if self.ended:
            raise RunNotFound(f"{self.spec.name} {self.ended}", run=self.spec.name)

    def require_open(self) -> None:
        """Raises RunNotFound when the run has ended, Draining when it has been saved for good."""
        self.require_alive()
        if self.closing:
            raise Draining(f"the server is about to stop; {self.spec.name} stays as it is")

    def delete(self, why: str = "has been deleted") -> None:
        """Ends the run and frees what it holds."""
        self.ended = why
        self._end_holds(RunNotFound(f"{self.spec.name} {why}", run=self.spec.name))
        for record in self._workers.values():
            record.forget_result()
        self._workers.clear()
        for free in self.on_delete:
            free()
        self.on_delete.clear()
        self.series.release()
        self._reservation.release()

    # --- steps ---------------------------------------------------------------------------------------------------

    def commit(self, holder: Holder, block: StagedBlock, gradients: Gradients) -> Receipt:
        """Applies a block whose gradients have all arrived, and remembers its result. All of it or nothing.

        Raises what `prepare` does, and InternalError where the device fails; then the run has ended.
        """
        return self.apply(holder, block, gradients, self.prepare(holder, block, gradients))

    def prepare(self, holder: Holder, block: StagedBlock, gradients: Gradients) -> Prepared:
        """Checks all that can be said against a block whose gradients have all arrived; changes nothing.

        Raises Fenced when the hold is lost or the run has changed since the block began, NonFiniteGradient when the
        policy is REJECT, Draining when the run has been saved for good.
        """
        block.locked = True
        self.require_open()
        self.require_holder(holder)
        if block.version != self.version:
            raise Fenced(f"{self.spec.name} has changed since this block began", epoch=self.epoch)
        sums = gradients.sums()
        applied = self._finite_rows(gradients, sums) if block.checks_finite else None
        step = self.step + (block.header.steps if applied is None else int(np.count_nonzero(applied)))
        receipt = Receipt(
            step=step,
            gradient_norm=math.sqrt(sums[-1]),
            learning_rates=tuple([group.learning_rate(max(step, 1)) for group in block.groups]),
            skipped_steps=() if applied is None else tuple(np.flatnonzero(~applied).tolist()),
            durability=self.spec.durability or Durability.MEMORY,
            received_bytes=block.received_bytes,
        )
        return Prepared(receipt, applied, sums)

    def apply(self, holder: Holder, block: StagedBlock, gradients: Gradients, prepared: Prepared) -> Receipt:
        """Does what has been prepared, under the same hold of the lock. Raises InternalError where the device fails."""
        receipt = prepared.receipt
        try:
            self.state = gradients.apply(self.state, prepared.applied, prepared.sums)
        except BaseException as error:
            # Some elements may have been updated and others not. Better no run than a torn one.
            self.delete("was ended: its device failed in the middle of a step")
            raise InternalError(f"the device failed in the middle of a step; {self.spec.name} was ended") from error
        before, self.step = self.step, receipt.step
        self.tensor_steps[block.present] += receipt.step - before
        if block.groups is not self.groups:
            self.events.note(EventKind.HYPERPARAMETERS, override_text(self.groups, block.groups), receipt.step)
            self.groups = block.groups
        if receipt.skipped_steps:
            skipped = f"{len(receipt.skipped_steps)} of {block.header.steps} steps had values that are not finite"
            self.events.note(EventKind.SKIPPED, skipped, receipt.step)
        self.version += 1
        if block.header.scalars:
            self.series.add_scalars(block.header.scalars, before, receipt.step, prepared.applied)
        self.series.note_block(receipt.step, receipt.gradient_norm, receipt.learning_rates)
        if block.round is None:
            holder.record.remember(block, receipt)
        else:
            self._remember(block.round, receipt)
        return receipt

    def _remember(self, applied: AppliedRound, receipt: Receipt) -> None:
        """What each contributor to a round is answered."""
        self.rounds = applied.number
        for part, own in zip(applied.contributions, applied.receipts(receipt), strict=True):
            record = self._workers.setdefault(part.worker_id, WorkerRecord())
            record.answer(part.sequence, own, self.spec.layout.elements)

    def check_log(self, worker_id: str, number: int, epoch: int) -> bool:
        """Whether what a worker logs beside its blocks is new; False: it has counted already.

        Raises SequenceMismatch, Fenced, Draining, RunNotFound.
        """
        self.require_open()
        record = self._workers.get(worker_id)
        last = 0 if record is None else record.last_log
        if 0 < number <= last:
            return False
        if number != last + 1:
            raise SequenceMismatch(
                f"log {number} of worker {worker_id!r} is not the next one", applied=False, expected_sequence=last + 1
            )
        if epoch != self.epoch:
            why = f"{self.spec.name} has been taken, written or put back since these values were logged"
            raise Fenced(why, applied=False, epoch=self.epoch)
        return True

    def log(self, worker_id: str, number: int, scalars: Sequence[Scalar]) -> None:
        """Takes what `check_log` has found new; there is room for it, see `RunSeries.claim`."""
        self.series.add_scalars(scalars, self.step - 1, self.step)
        self.series.logged += 1
        self._record(worker_id, () if self.holder is None else (self.holder.worker_id,)).last_log = number

    def _finite_rows(self, gradients: Gradients, sums: npt.NDArray[np.float64]) -> Bools | None:
        """Which rows hold finite numbers only; None: all of them. Raises NonFiniteGradient where the policy says so."""
        # No square is negative, so nothing that is not finite cancels out.
        if math.isfinite(sums[0] if len(sums) == 1 else sums.sum()):
            return None
        finite: Bools = np.isfinite(sums)
        for row in np.flatnonzero(~finite).tolist():
            first = gradients.first_non_finite(row)
            if first is None:  # the squares of large float64 numbers overflowed, the numbers are finite
                finite[row] = True
            elif self.spec.non_finite_policy is NonFinitePolicy.REJECT or self.spec.shared is not None:
                # Of a shared run no contribution got here that the policy does not allow; their sum has overflowed.
                layout = self.spec.layout
                self.events.note(EventKind.REJECTED, non_finite_text(layout, *first), self.step)
                raise NonFiniteGradient(
                    f"{non_finite_text(layout, *first)}, in step {row} of the block; "
                    "expected finite numbers. Nothing was applied",
                    tensor=layout.tensor_at(first[0]).name,
                    block_step=row,
                )
        return None if finite.all() else finite

    # --- values --------------------------------------------------------------------------------------------------

    @property
    def values(self) -> Values:
        """As they are now."""
        return Values(self.state, self.step, self.tensor_steps, self.groups)

    @property
    def changes(self) -> int:
        """Rises with everything that a snapshot holds."""
        return self.version + self.series.logged

    @property
    def workers(self) -> OrderedDict[str, WorkerRecord]:
        """What is remembered of each worker; the one that has been away longest comes first."""
        return self._workers

    def replace(self, values: Values, what: str) -> None:
        """Puts whole new values in place and fences the holder. Raises RunNotFound, Draining."""
        self.require_open()
        if values.series is None:
            self.series.cut(values.step)
        else:
            self.series.load(values.series)
        self.state, self.step, self.tensor_steps = values.state, values.step, values.tensor_steps
        self.groups = values.groups
        self.version += 1
        self.fence(f"{what} of {self.spec.name} have been replaced")
