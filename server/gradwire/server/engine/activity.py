"""What a run does now: its steps a second, and what each of its workers waits for."""

from __future__ import annotations

from enum import IntEnum
from time import perf_counter
from typing import NamedTuple, Protocol

from gradwire.wire.sizes import amount

WINDOW_SECONDS = 3.0
"""A rate is of the last one to two windows. Blocks that take longer are taken two at a time."""

_STILL_BLOCKS = 3
"""After so many times what lay between the last two blocks, and a window at least, nothing moves."""


class Activity:
    """The blocks of one run as they are applied, since the server began. Any thread may read it.

    `applied` is called for each step, so it counts and looks at no clock: whoever applies a block has done so.
    """

    __slots__ = ("_counted", "_gap_seconds", "_newer_at", "_newer_steps", "_older_at", "_older_steps", "applied_at")

    def __init__(self) -> None:
        self.applied_at = 0.0
        """When a block was applied last, by `time.perf_counter`; 0: never."""
        self._counted = 0
        self._gap_seconds = 0.0  # between the last two blocks
        self._older_at = self._newer_at = 0.0
        self._older_steps = self._newer_steps = 0

    def applied(self, steps: int, now: float) -> None:
        """A block of so many steps has been.

        Args:
            now: by `time.perf_counter`.
        """
        self._counted += steps
        gap = now - self.applied_at
        if now - self._newer_at >= WINDOW_SECONDS:
            self._turn(now, gap)
        self._gap_seconds = gap
        self.applied_at = now

    def _turn(self, now: float, gap_seconds: float) -> None:
        """A window has passed; or the run moves again, and what was before says nothing of how fast."""
        if _still(self._gap_seconds, gap_seconds):
            self._older_at, self._older_steps = now, self._counted
        else:
            self._older_at, self._older_steps = self._newer_at, self._newer_steps
        self._newer_at, self._newer_steps = now, self._counted

    @property
    def idle_seconds(self) -> float | None:
        """Since a block was applied; None: none has been."""
        return perf_counter() - self.applied_at if self.applied_at else None

    @property
    def steps_per_second(self) -> float:
        """Now; 0: nothing moves. The first block says nothing of how long it took."""
        now, older_at, older_steps, counted = perf_counter(), self._older_at, self._older_steps, self._counted
        if now <= older_at or counted == older_steps or _still(self._gap_seconds, now - self.applied_at):
            return 0.0
        return (counted - older_steps) / (now - older_at)


def _still(gap_seconds: float, idle_seconds: float) -> bool:
    return idle_seconds > max(WINDOW_SECONDS, _STILL_BLOCKS * gap_seconds)


class WaitsFor(IntEnum):
    """What a worker, or whoever serves it, waits for. See ``gradwire.v1.WaitsFor``."""

    BLOCK = 1
    """Its next block, of which nothing has come."""
    GRADIENTS = 2
    """The rest of a block."""
    PACE = 3
    """Its tenant has used a rate up."""
    LOCK = 4
    """Somebody else's work on the run."""
    DEVICE = 5
    """A block is computed."""
    DISK = 6
    """A block is journaled."""
    READER = 7
    """It does not take what it is answered."""
    ROUND = 8
    """Its round has not closed."""


class Wait(NamedTuple):
    """What one worker waits for."""

    kind: WaitsFor
    text: str
    """In words, which may follow "waits for"."""
    seconds: float
    """For how long."""


class Attached(Protocol):
    """One worker's hold on a run, as far as it matters here; see `workers.Holder`."""

    worker_id: str
    stall_told: bool
    """Whether the log has said that nothing moves."""

    def wait(self) -> Wait | None:
        """What it waits for now; None: nobody knows yet. On the event loop."""


def wait_for_block(sequence: int, since: float) -> Wait:
    """Nothing of block ``sequence`` has come.

    Args:
        since: when, by `time.perf_counter`, as in the other functions here.
    """
    return Wait(WaitsFor.BLOCK, f"block {sequence}", perf_counter() - since)


def wait_for_gradients(sequence: int, received_bytes: int, expected_bytes: int, since: float) -> Wait:
    """So much of a block is here."""
    here = amount(received_bytes, expected_bytes)
    return Wait(WaitsFor.GRADIENTS, f"gradients of block {sequence}, {here} here", perf_counter() - since)


def wait_for_pace(since: float) -> Wait:
    """No more is read."""
    return Wait(WaitsFor.PACE, "the rate of its tenant, which is used up", perf_counter() - since)


def wait_for_reader(sequence: int, since: float) -> Wait:
    """An answer is not taken."""
    return Wait(WaitsFor.READER, f"its reader, to take the answer to block {sequence}", perf_counter() - since)
