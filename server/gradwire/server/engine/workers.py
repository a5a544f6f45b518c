"""Who works on a run, and what is remembered of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from gradwire.server.devices.base import DeviceArray
from gradwire.server.engine.activity import Wait, wait_for_pace
from gradwire.server.engine.block import Kind, Receipt, Returns
from gradwire.server.engine.staged_block import SKIPPED_BYTES, StagedBlock
from gradwire.server.memory.budget import Reservation
from gradwire.wire.errors import GradwireError, ProtocolViolation
from gradwire.wire.layout import Range

MAX_ID_BYTES = 128
"""Length of a worker's or a request's id."""


@dataclass
class WorkerRecord:
    """What is remembered of a worker: enough to answer its last block again."""

    last_sequence: int = 0
    last_accepted: int = 0
    """Of a shared run: the last one that was part of a round that was applied."""
    last_log: int = 0
    """How often it has logged something beside its blocks, see ``gradwire.v1.LogScalarsRequest``."""
    receipt: Receipt | None = None
    returns: Returns = Returns.NONE
    steps: int = 0
    ranges: tuple[Range, ...] = ()
    trajectory: DeviceArray | None = None
    reservation: Reservation | None = None

    def remember(self, block: StagedBlock, receipt: Receipt) -> None:
        """Takes over the result of a block that has been committed."""
        self.forget_result()
        self.last_sequence = block.sequence
        self.receipt = receipt
        self.returns = block.header.returns
        self.steps = block.header.steps
        self.ranges = block.ranges
        self.trajectory = block.trajectory
        self.reservation = block.give_result_memory()
        if self.reservation is not None:
            self.reservation.give_back(block.skipped_bytes - SKIPPED_BYTES * len(receipt.skipped_steps))

    def answer(self, sequence: int, receipt: Receipt, elements: int) -> None:
        """Takes over what a contribution to a shared run is answered with: ``receipt``, and all parameters."""
        assert receipt.contribution is not None
        self.last_sequence = sequence
        if receipt.contribution.kind is Kind.ACCEPTED:
            self.last_accepted = sequence
        self.receipt, self.returns, self.steps = receipt, Returns.LAST, 1
        self.ranges = (Range(0, elements),) if elements else ()

    def forget_result(self) -> None:
        """Drops the remembered trajectory and its memory, not the sequence number."""
        self.trajectory = None
        if self.reservation is not None:
            self.reservation.release()
            self.reservation = None

    @property
    def rows(self) -> int:
        """Rows of the remembered result: the trajectory's, 1 for the last parameters, 0 for a receipt alone."""
        if self.returns is Returns.TRAJECTORY:
            return self.steps
        return 1 if self.returns is Returns.LAST else 0


@dataclass(eq=False)
class Holder:
    """One worker's hold on a run. It ends when somebody else takes the run or its values are replaced."""

    worker_id: str
    epoch: int
    record: WorkerRecord
    step: int
    """The run's step at the attachment."""
    on_end: Callable[[GradwireError], None] = field(default=lambda error: None)
    perhaps_forgotten: bool = False
    """Whether the worker is not known, and may have been."""
    paced_at: float = 0.0
    """Since when no more of its blocks is read, by `time.perf_counter`; 0: more is."""
    waits: Callable[[], Wait | None] = field(default=lambda: None)
    """What it waits for; set by whoever serves its stream. On the event loop."""
    block_seconds: Callable[[], Collection[float]] = field(default=tuple)
    """What each of its last blocks took, from its first message to the last one of its answer. On the event loop."""
    stall_told: bool = False
    """See `activity.Attached`."""

    def wait(self) -> Wait | None:
        return wait_for_pace(self.paced_at) if self.paced_at else self.waits()


def check_id(field: str, value: str) -> None:
    """Raises ProtocolViolation for an empty or overlong id of a worker or a request."""
    size = len(value.encode())
    if not 1 <= size <= MAX_ID_BYTES:
        raise ProtocolViolation(f"{field} has {size} bytes; expected 1 to {MAX_ID_BYTES}")
