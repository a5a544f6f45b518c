"""The straight path: a short block that comes whole in one message, to a run that nobody else works on.

It is checked, applied and got ready to be answered without a task, a future or a second turn of the event loop. One
that is journaled waits for the disk, and for nothing else. All other blocks go the long way, through `BlockReceiver`;
so does what is malformed, since that way says what is wrong with it.
"""

from __future__ import annotations

from gradwire.server.durability import changes
from gradwire.server.encodings.decoders import Decoder
from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.block import GradientSlice, Receipt, Reply, Returns
from gradwire.server.engine.block_plan import check_header, plan_block, planning_work
from gradwire.server.engine.gradients import StagedGradients
from gradwire.server.engine.repeated_plan import RepeatedPlan
from gradwire.server.engine.run import Run
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.engine.threads import is_short, updates
from gradwire.server.engine.workers import Holder
from gradwire.server.memory.shared_memory import SharedSlice
from gradwire.wire.layout import Range


class StraightPath:
    """For the blocks of one hold on one run."""

    def __init__(self, run: Run, holder: Holder, decoder: Decoder, encoder: Encoder) -> None:
        self._run = run
        self._holder = holder
        self._decoder = decoder
        self._encoder = encoder
        self._whole = Range(0, run.spec.layout.elements)
        self._answer_bytes = encoder.vector_bytes(self._whole.stop)
        self._repeated = RepeatedPlan(run)
        self._open = self._whole.stop > 0 and encoder.dense is not None and not run.spec.clips

    def plan(self, part: GradientSlice) -> StagedBlock | None:
        """What ``part`` will be applied as; None: not on this path. No other block of this hold may be arriving.

        Raises InvalidHyperparameter, ProtocolViolation for overrides, InvalidSlice, MemoryLimitExceeded.
        """
        header, run = part.header, self._run
        if (
            not self._open
            or header is None
            or not part.last
            or part.sequence != self._holder.record.last_sequence + 1
            or self._answer_bytes > self._encoder.slice_bytes
            or isinstance(part.data, SharedSlice)
            or run.lock.locked
        ):
            return None
        again = self._repeated.after(part)
        if again is not None:
            return again
        if (
            header.contribution is not None
            or header.returns is Returns.TRAJECTORY
            or header.absent_tensors
            or header.deferred
            or not is_short(updates(self._whole.stop, header.steps))
            or not is_short(planning_work(run, header))
            or self._decoder.place(part.offset, len(part.data), header.steps) != self._whole
        ):
            return None
        block = plan_block(run, part.sequence, header, check_header(run, header, max_result_bytes=0))
        block.received_bytes = len(part.data)
        self._repeated.keep(block)
        return block

    @property
    def waits(self) -> bool:
        """Whether commits wait for the disk."""
        return changes.waits(self._run)

    async def commit(self, block: StagedBlock, part: GradientSlice) -> Reply:
        """Applies what `plan` has just returned for ``part``. The reply is to be encoded before anything else happens.
        Raises as `Run.commit` does."""
        gradients = self._staged(block, part)
        work = updates(self._whole.stop, block.header.steps)
        try:
            receipt = await changes.commit(self._run, self._holder, block, lambda: gradients, work)
        finally:
            block.drop()
        return self._reply(block, receipt)

    def commit_at_once(self, block: StagedBlock, part: GradientSlice) -> Reply:
        """As `commit`, of a run whose commits do not wait."""
        try:
            receipt = changes.commit_at_once(self._run, self._holder, block, self._staged(block, part))
        finally:
            block.drop()
        return self._reply(block, receipt)

    def _staged(self, block: StagedBlock, part: GradientSlice) -> StagedGradients:
        run = self._run
        assert not isinstance(part.data, SharedSlice)
        values = run.device.stage(self._decoder.values(self._whole, part.data, block.header.steps), run.spec.dtype)
        return StagedGradients(run.spec, run.device, block, values)

    def _reply(self, block: StagedBlock, receipt: Receipt) -> Reply:
        run = self._run
        if block.header.returns is Returns.NONE:
            return Reply(block.sequence, receipt=receipt)
        return Reply(block.sequence, 0, run.device.peek(run.state.params, Range(0, 1), self._whole), receipt)
