"""What one worker of a run waits for, as the moments of its block tell it."""

from __future__ import annotations

from time import perf_counter

from gradwire.server.engine.activity import (
    Wait,
    WaitsFor,
    wait_for_block,
    wait_for_gradients,
    wait_for_reader,
)
from gradwire.server.engine.run import Run
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.engine.workers import Holder
from gradwire.server.metrics.blocks import BlockWatch
from gradwire.server.training.block_receiver import BlockReceiver


class BlockWait:
    """Of one hold on one run. Nearly all of it is asked for, not noted: a step notes its block alone.

    Args:
        watch: knows the moments of the block under way.
        receiver: has what has arrived of it.
    """

    def __init__(self, run: Run, holder: Holder, watch: BlockWatch, receiver: BlockReceiver) -> None:
        self.block: StagedBlock | None = None
        """That has arrived whole, until it is answered."""
        self.message_at = 0.0
        """Since when a message is looked at that may be the last one of its block, or not; 0: none is."""
        self.reply_at = 0.0
        """Since when a part of an answer waits to be taken, where an answer has more than one; 0: none does."""
        self._run = run
        self._holder = holder
        self._watch = watch
        self._receiver = receiver

    def now(self) -> Wait:
        """What is waited for. On the event loop."""
        block, watch = self.block, self._watch
        sequence = self._holder.record.last_sequence + 1
        if self.reply_at or (block is not None and watch.applied_at):
            answered = sequence if block is None else block.sequence
            return wait_for_reader(answered, max(self.reply_at, watch.applied_at))
        if block is not None:
            return self._commit(block)
        if self.message_at:
            return self._lock_or_device(sequence, self.message_at, locked=not self._run.lock.locked)
        here = self._receiver.here
        if here is None:
            return wait_for_block(sequence, watch.ended_at)
        return wait_for_gradients(sequence, here.received_bytes, here.expected_bytes, here.last_at)

    def _commit(self, block: StagedBlock) -> Wait:
        if block.journaling_at:
            text = f"the disk, to have block {block.sequence} in the journal"
            return Wait(WaitsFor.DISK, text, perf_counter() - block.journaling_at)
        return self._lock_or_device(block.sequence, self._watch.whole_at or self._watch.began, locked=block.locked)

    def _lock_or_device(self, sequence: int, since: float, *, locked: bool) -> Wait:
        seconds = perf_counter() - since
        if locked:
            return Wait(WaitsFor.DEVICE, f"the device, which computes block {sequence}", seconds)
        return Wait(WaitsFor.LOCK, f"the lock of the run, to apply block {sequence}", seconds)
