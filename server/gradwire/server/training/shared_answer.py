"""An answer that is written to shared memory while its block is applied, so that the client reads it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.block import Placed, Receipt, Reply, Returns
from gradwire.server.engine.staged_block import StagedBlock
from gradwire.server.memory.shared_memory import SharedMemory
from gradwire.server.optimizers.base import Floats
from gradwire.wire.layout import Range


class SharedAnswer:
    """The parameters after a block: ``parts`` of them have a place in the memory, there is no room for the ``rest``.

    Args:
        wire: dtype in which they are written.
        tiles: all that is answered, cut for messages, in order.
    """

    def __init__(self, memory: SharedMemory, sequence: int, wire: np.dtype[Any], tiles: Sequence[Range]) -> None:
        self._memory = memory
        self._sequence = sequence
        self._wire = wire
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Queue[bool] = asyncio.Queue()
        self._placed: dict[Range, Placed] = {}
        for tile in tiles:
            size_bytes = (tile.stop - tile.start) * wire.itemsize
            place = memory.place(size_bytes, tile.start * wire.itemsize, last=tile is tiles[-1])
            if place is None:
                break
            self._placed[tile] = Placed(place, size_bytes)
        self.parts = tiles[: len(self._placed)]
        self.rest = tiles[len(self._placed) :]

    @classmethod
    def of(cls, memory: SharedMemory | None, encoder: Encoder, block: StagedBlock) -> SharedAnswer | None:
        """None where the answer does not go through shared memory, or is not written there element by element."""
        wire = encoder.dense
        if memory is None or wire is None or block.header.returns is not Returns.LAST:
            return None
        tiles = [tile for part in block.ranges for tile in encoder.tiles(part, 1)]
        if not tiles or not memory.carries((tiles[0].stop - tiles[0].start) * wire.itemsize):
            return None
        return cls(memory, block.sequence, wire, tiles)

    @property
    def early(self) -> bool:
        """Whether anything can be said before the block has been applied."""
        return len(self.parts) + len(self.rest) > 1

    def place(self, part: Range) -> Floats:
        """Called in the thread that applies the block."""
        (position, _), size_bytes = self._placed[part]
        return self._memory.parameters(position, size_bytes).view(self._wire).reshape(1, -1)

    def done(self, part: Range) -> None:
        """Called in that thread, part after part."""
        with suppress(RuntimeError):  # the loop has ended, and the client with it
            self._loop.call_soon_threadsafe(self._ready.put_nowait, True)

    async def replies(self, commit: asyncio.Task[Receipt]) -> AsyncIterator[Reply]:
        """What can be said before ``commit`` has ended: all ``parts``, but for the last one where that ends the answer.

        Ends early where the commit fails.
        """
        commit.add_done_callback(lambda _: self._ready.put_nowait(False))
        for part in self.parts if self.rest else self.parts[:-1]:
            if not await self._ready.get():
                return
            yield Reply(self._sequence, part.start, placed=self._placed[part])

    def last(self, receipt: Receipt, committed: Callable[[], Awaitable[object]] | None = None) -> Reply:
        """The reply with the receipt, where there is no ``rest``."""
        part = self.parts[-1]
        return Reply(self._sequence, part.start, receipt=receipt, placed=self._placed[part], committed=committed)
