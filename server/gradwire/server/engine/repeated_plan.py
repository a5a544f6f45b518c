"""The plan of a block that is as the one before it: of most runs all blocks are, and differ in their step alone.

It is what `plan_block` would make. What it logs may be new, and the scalars of its steps are: those of the next few
steps are computed together, since they depend on hyperparameters and step alone, and K of them cost hardly more than
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradwire.server.devices.base import Segment
from gradwire.server.engine.block import BlockHeader, GradientSlice
from gradwire.server.engine.run import Run
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.optimizers.base import Floats
from gradwire.server.series.scalars import check_scalars
from gradwire.wire.layout import Range

_MOST_BLOCKS = 64
_MOST_ROWS = 1024
"""Of scalars, that are computed ahead: they take some tens of KiB, and of a long block nothing is gained."""


class RepeatedPlan:
    """For the blocks of one hold on one run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._block: StagedBlock | None = None
        self._silent: dict[str, Any] = {}  # the fields of its header, without what it logs
        self._step = 0  # the run's, when that was planned
        self._scalars = _Scalars([], 0)

    def keep(self, block: StagedBlock) -> None:
        """``block``, all of whose gradients are there, has just been planned from the run as it is."""
        header = block.header
        alone = header.overrides or header.absent_tensors or header.deferred or header.contribution
        counted = block.scalar_memory or block.result_memory or block.trajectory is not None
        empty = any(segment.start == segment.stop for segment in block.segments)
        self._block = None if alone or counted or empty else block
        self._silent = {**vars(header), "scalars": ()}
        self._step = self._run.step
        self._scalars = _Scalars([], 0)

    def after(self, part: GradientSlice) -> StagedBlock | None:
        """What ``part``, a whole block, will be applied as; None: it must be planned as any other.

        Raises ProtocolViolation, MemoryLimitExceeded for what it logs.
        """
        last, run, header = self._block, self._run, part.header
        if (
            last is None
            or header is None
            or not self._is_repeated(header, last.header)
            or run.version != last.version + 1  # nothing but that block has changed the run
            or run.step != self._step + last.header.steps
            or part.offset
            or len(part.data) != last.received_bytes
        ):
            return None
        steps = header.steps
        if header.scalars:
            check_scalars(header.scalars, steps)
            run.series.claim(header.scalars)
        if not self._scalars.blocks:
            self._scalars = self._compute(last.segments, steps)
        self._step = run.step
        self._block = block = last.repeated(header, part.sequence, run.version, run.state, self._scalars.take(steps))
        return block

    def _is_repeated(self, header: BlockHeader, last: BlockHeader) -> bool:
        """Whether two headers differ at most in what they log."""
        if header is last:
            return True
        return bool(header.scalars or last.scalars) and {**vars(header), "scalars": ()} == self._silent

    def _compute(self, segments: Sequence[Segment], steps: int) -> _Scalars:
        run, layout = self._run, self._run.spec.layout
        blocks = max(1, min(_MOST_BLOCKS, _MOST_ROWS // (steps * max(len(segments), 1))))
        found = []
        for segment in segments:
            tensor = layout.tensors_in(Range(segment.start, segment.stop))[0]
            group, t = run.groups[layout.tensors[tensor].group], int(run.tensor_steps[tensor])
            rows = group.varying(run.step + 1, t + 1, blocks * steps, run.spec.dtype)
            found.append((segment, rows))
        return _Scalars(found, blocks)


@dataclass
class _Scalars:
    """Of the next ``blocks`` blocks."""

    found: list[tuple[Segment, Floats]]
    blocks: int
    row: int = 0

    def take(self, steps: int) -> list[Segment]:
        """The segments of the next block."""
        start = self.row
        self.row = stop = start + steps
        self.blocks -= 1
        return [Segment(s.start, s.stop, s.kernel, s.constants, rows[start:stop]) for s, rows in self.found]
