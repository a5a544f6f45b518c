"""The two encodings of one worker: gradients on their way out, parameters on their way in.

A run hands gradients to the one and answers to the other, and knows neither dtypes nor blocks.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gradwire.client.encodings import flat_vector
from gradwire.client.encodings.block import BlockData, DenseBlock
from gradwire.client.encodings.delta_copy import DeltaCopy
from gradwire.client.encodings.error_feedback import EncodedBlock, ErrorFeedback
from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.encoding import Array, decode, wire_dtype
from gradwire.wire.int8 import Blocks, Bytes
from gradwire.wire.layout import Layout, Range

Tiles = Callable[[Sequence[Range], int, int], Iterable[Range]]
"""Cuts ranges to slices; the numbers are the bytes of one element's row and those that a slice should have."""


Data = bytes | memoryview | Bytes


class GradientEncoder(ABC):
    """Gradients -> slices."""

    @property
    @abstractmethod
    def ahead(self) -> np.dtype[Any] | None:
        """The dtype in which gradients may be sent before all of them are known; None: they may not."""

    @abstractmethod
    def block(
        self,
        rows: Sequence[Array | None],
        ranges: Sequence[Range],
        steps: int,
        previous: BlockData | None,
        slice_bytes: int,
    ) -> BlockData:
        """One block, in slices of about ``slice_bytes``, where it can be cut so.

        ``previous``: what this returned for an earlier attempt to send it.
        """

    @abstractmethod
    def commit(self, block: BlockData, *, skipped: bool) -> None:
        """The block has been applied, or, ``skipped``, not all of its steps."""

    @abstractmethod
    def drop(self) -> None:
        """A stream has been attached: blocks that follow do not lean on earlier ones."""


class DenseGradients(GradientEncoder):
    """Elements of one dtype."""

    def __init__(self, layout: Layout, wire: np.dtype[Any], tiles: Tiles) -> None:
        self._layout = layout
        self._wire = wire
        self._tiles = tiles

    @property
    def ahead(self) -> np.dtype[Any]:
        return self._wire

    def block(
        self,
        rows: Sequence[Array | None],
        ranges: Sequence[Range],
        steps: int,
        previous: BlockData | None,
        slice_bytes: int,
    ) -> BlockData:
        tiles = self._tiles(ranges, steps * self._wire.itemsize, slice_bytes)
        return DenseBlock(self._layout, rows, tiles, self._wire, steps)

    def commit(self, block: BlockData, *, skipped: bool) -> None:
        pass

    def drop(self) -> None:
        pass


class Int8Gradients(GradientEncoder):
    """INT8 with error feedback. A retry sends the same bytes."""

    def __init__(self, layout: Layout, blocks: Blocks) -> None:
        self.feedback = ErrorFeedback(layout, blocks)

    @property
    def ahead(self) -> None:
        return None  # a gradient that is sent twice would have to give back what the first one took of the residual

    def block(
        self,
        rows: Sequence[Array | None],
        ranges: Sequence[Range],
        steps: int,
        previous: BlockData | None,
        slice_bytes: int,
    ) -> BlockData:
        return self.feedback.begin(rows, ranges, steps) if previous is None else previous

    def commit(self, block: BlockData, *, skipped: bool) -> None:
        assert isinstance(block, EncodedBlock)
        if skipped:
            self.feedback.drop()
        else:
            self.feedback.commit(block)

    def drop(self) -> None:
        self.feedback.drop()


class ParameterDecoder(ABC):
    """Answers -> values."""

    @abstractmethod
    def take(self, reply: train_pb2.Parameters, data: Data) -> Array:
        """The values ``[rows, length]`` of one message and its data; they may share memory and change with the next."""

    @abstractmethod
    def restart(self) -> None:
        """A stream has been attached: its answers do not lean on those of earlier ones."""


class DenseParameters(ParameterDecoder):
    """Elements of one dtype."""

    def __init__(self, wire: np.dtype[Any]) -> None:
        self._wire = wire

    def take(self, reply: train_pb2.Parameters, data: Data) -> Array:
        return decode(data, self._wire, reply.steps)

    def restart(self) -> None:
        pass


class DeltaParameters(ParameterDecoder):
    """INT8 differences."""

    def __init__(self, blocks: Blocks) -> None:
        self.copy = DeltaCopy(blocks)

    def take(self, reply: train_pb2.Parameters, data: Data) -> Array:
        return self.copy.take(reply, data)[None]

    def restart(self) -> None:
        self.copy.forget()


def encodings_of(
    attach: train_pb2.Attach, layout: Layout, state: np.dtype[Any]
) -> tuple[GradientEncoder, ParameterDecoder]:
    """What writes and reads the data of the streams that begin with ``attach``. Raises ProtocolViolation."""
    int8 = run_pb2.ENCODING_INT8
    blocks = functools.cache(lambda: Blocks(layout))

    def whole_blocks(ranges: Sequence[Range], row_bytes: int, slice_bytes: int) -> Iterable[Range]:
        return blocks().tiles(ranges, slice_bytes // row_bytes)

    decoder = (
        DeltaParameters(blocks())
        if attach.parameter_encoding == int8
        else DenseParameters(wire_dtype(attach.parameter_encoding, state))
    )
    if attach.gradient_encoding == int8:
        return Int8Gradients(layout, blocks()), decoder
    # The server answers slice by slice; of a slice that cuts a block it cannot send the ends as INT8.
    tiles = whole_blocks if attach.parameter_encoding == int8 else flat_vector.tiles
    return DenseGradients(layout, wire_dtype(attach.gradient_encoding, state), tiles), decoder
