"""Gradients on their way out: each encoding of them. A run hands over rows and knows neither dtypes nor blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gradwire.client.encodings.block import BlockData, DenseBlock
from gradwire.client.encodings.error_feedback import EncodedBlock, ErrorFeedback
from gradwire.wire.encoding import Array
from gradwire.wire.int8 import Blocks
from gradwire.wire.layout import Layout, Range

Tiles = Callable[[Sequence[Range], int, int], Iterable[Range]]
"""Cuts ranges to slices; the numbers are the bytes of one element's row and those that a slice should have."""


class GradientEncoder(ABC):
    """Gradients -> slices."""

    @property
    @abstractmethod
    def early_dtype(self) -> np.dtype[Any] | None:
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
    def early_dtype(self) -> np.dtype[Any]:
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
    def early_dtype(self) -> None:
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
