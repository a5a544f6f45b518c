"""What a stream answers of a block: the parameters, or the trajectory, piece by piece, and the receipt."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np

from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.block import Receipt, Reply
from gradwire.server.engine.run import Run
from gradwire.server.engine.workers import Holder
from gradwire.wire.errors import GradwireError
from gradwire.wire.layout import Range


class Results:
    """Replies to the blocks of one hold on one run."""

    def __init__(self, run: Run, holder: Holder, encoder: Encoder) -> None:
        self._run = run
        self._holder = holder
        self._encoder = encoder

    async def committed(
        self, receipt: Receipt, only: Sequence[Range] | None = None, *, written: bool = False
    ) -> AsyncIterator[Reply]:
        """The result of the last block: all present elements, or those in ``only``; then the receipt."""
        record = self._holder.record
        sequence = record.last_sequence
        ranges = record.ranges if only is None else only
        rows = record.rows
        tiles = (tile for part in ranges if rows for tile in self._encoder.tiles(part, rows))
        tile = next(tiles, None)
        if tile is None:
            yield Reply(sequence, receipt=receipt)
        while tile is not None:
            try:
                values = await self._run.lock.run(functools.partial(self._read, rows, tile))
            except GradwireError as error:
                error.applied = True  # the block was committed; only its answer is lost
                raise
            this, tile = tile, next(tiles, None)
            yield Reply(sequence, this.start, values, receipt if tile is None else None, written)

    def _read(self, rows: int, tile: Range) -> np.ndarray[Any, Any]:
        self._run.require_holder(self._holder)
        trajectory = self._holder.record.trajectory
        source = self._run.state.params if trajectory is None else trajectory
        return self._run.device.peek(source, Range(0, rows), tile)
