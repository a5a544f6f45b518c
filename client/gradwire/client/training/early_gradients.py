"""Gradients of the next step that leave before the step is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gradwire.client.encodings import flat_vector
from gradwire.client.encodings.block import DenseBlock
from gradwire.client.training.block_messages import slice_message
from gradwire.client.transport.shared_memory import SharedMemory
from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.encoding import SLICE_BYTES, Array
from gradwire.wire.layout import Layout, Range, merge

Source = Callable[[], Array]
"""Makes a tensor's gradient, ``[1, size]``, when the connection is ready to take it. Called in the sending thread."""


class EarlyGradients:
    """What has left of a deferred block, on one stream.

    It is a head start and no promise: whoever steps still has all gradients, so when the stream breaks this is simply
    forgotten. Not safe against concurrent calls; the generators that it makes run in the stream's sending thread.
    """

    def __init__(self, layout: Layout, wire: np.dtype[Any]) -> None:
        self._layout = layout
        self._wire = wire
        self._round = _Round()
        self.tensors: set[int] = set()
        """Tensors (by index) that have left whole, or stand in the stream's queue."""

    def forget(self) -> None:
        """Begins anew: what is still queued does not leave, what has left will be replaced."""
        if not self.tensors and not self._round.begun:
            return
        self._round.over = True
        self._round = _Round()
        self.tensors.clear()

    def messages(
        self,
        sequence: int,
        sources: Mapping[int, Source],
        overrides: Sequence[run_pb2.Override] = (),
        memory: SharedMemory | None = None,
        contribution: train_pb2.Contribution | None = None,
    ) -> Iterator[bytes | None]:
        """The serialized messages that carry these tensors, see `slice_message`; they count as sent from now on.

        Args:
            overrides: those that the step will have, as far as is known. The first message of a round carries them.
            memory: where the data goes, as far as there is room.
            contribution: of a shared run. As with the overrides, what the last message says holds.
        """
        self.tensors.update(sources)
        header = train_pb2.BlockHeader(steps=1, deferred=True, overrides=overrides, contribution=contribution)
        return self._messages(self._round, sequence, dict(sources), header, memory)

    def _messages(
        self,
        current: _Round,
        sequence: int,
        sources: dict[int, Source],
        header: train_pb2.BlockHeader,
        memory: SharedMemory | None,
    ) -> Iterator[bytes | None]:
        tensors = self._layout.tensors
        parts = merge(Range(tensors[index].start, tensors[index].stop) for index in sorted(sources))
        rows: list[Array | None] = [None] * len(tensors)
        slice_bytes = SLICE_BYTES if memory is None else memory.slice_bytes
        for part in flat_vector.tiles(parts, self._wire.itemsize, slice_bytes):
            if current.over:
                return
            for index in self._layout.tensors_in(part):
                if rows[index] is None and index in sources:  # an empty tensor may lie between two that leave
                    rows[index] = sources[index]()
            message = train_pb2.Gradients(sequence=sequence, offset=part.start)
            if not current.begun:
                current.begun = True
                message.header.CopyFrom(header)
            yield from slice_message(message, DenseBlock(self._layout, rows, (part,), self._wire, 1), 0, memory)


class _Round:
    """One attempt to fill the block. Jobs of a stream run one after another: the first to run is the first to send."""

    begun = False
    """Whether the header has left."""
    over = False
