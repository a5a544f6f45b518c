"""How the gradients of a stream are read: bytes -> values, whatever the encoding.

A session hands slices over and knows neither dtypes nor blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from gradwire.wire.encoding import Array, columns_of, decode
from gradwire.wire.int8 import SCALE_BYTES, Blocks, Bytes, array_of, decode_rows, row_bytes_of, rows_of
from gradwire.wire.layout import Range

Data = bytes | memoryview | Bytes


class Decoder(ABC):
    """Slices of gradients -> values."""

    @property
    @abstractmethod
    def least_row_bytes(self) -> int:
        """Size of one row of the longest slice that cannot be cut."""

    @property
    def dense(self) -> np.dtype[Any] | None:
        """What elements are read as, where each is for itself."""
        return None

    @abstractmethod
    def vector_bytes(self, elements: int) -> int:
        """Size of one row of a whole vector."""

    @abstractmethod
    def place(self, offset: int, size_bytes: int, steps: int) -> Range:
        """The elements that a slice of this size holds. Raises InvalidSlice."""

    @abstractmethod
    def values(self, place: Range, data: Data, steps: int) -> Array:
        """``[steps, length]``, for a slice that `place` has found good; may share its memory. Bulk work."""


class DenseDecoder(Decoder):
    """Elements of one dtype."""

    def __init__(self, wire: np.dtype[Any]) -> None:
        self._wire = wire

    @property
    def least_row_bytes(self) -> int:
        return self._wire.itemsize

    @property
    def dense(self) -> np.dtype[Any]:
        return self._wire

    def vector_bytes(self, elements: int) -> int:
        return elements * self._wire.itemsize

    def place(self, offset: int, size_bytes: int, steps: int) -> Range:
        return Range(offset, offset + columns_of(size_bytes, self._wire, steps))

    def values(self, place: Range, data: Data, steps: int) -> Array:
        return decode(data, self._wire, steps)


class BlockDecoder(Decoder):
    """INT8."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    @property
    def least_row_bytes(self) -> int:
        return self._blocks.widest_row_bytes

    def vector_bytes(self, elements: int) -> int:
        return elements + SCALE_BYTES * self._blocks.count

    def place(self, offset: int, size_bytes: int, steps: int) -> Range:
        return self._blocks.part_of(offset, row_bytes_of(size_bytes, steps))

    def values(self, place: Range, data: Data, steps: int) -> Array:
        span = self._blocks.span(place)
        return decode_rows(self._blocks, span, rows_of(array_of(data, steps), span))
