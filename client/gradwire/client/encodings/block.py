"""The gradients of one block as slices, each encoded when it is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gradwire.client.encodings import flat_vector
from gradwire.wire.encoding import Array, encoded, narrowed
from gradwire.wire.layout import Layout, Range
from gradwire.wire.shared import Bytes


class BlockData(ABC):
    """The slices of one block, encoded."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[Range]:
        """The elements of each slice."""

    @abstractmethod
    def data(self, index: int) -> Array:
        """The values or bytes of slice ``index``, ``[steps, ...]``, as they are sent."""

    def size_bytes(self, index: int) -> int:
        """Size of `data`."""
        return self.data(index).nbytes

    def write(self, index: int, out: Bytes) -> None:
        """Writes the bytes of `data` to ``out``."""
        out[:] = np.frombuffer(encoded(self.data(index)), np.uint8)


class DenseBlock(BlockData):
    """``steps`` rows of elements of one dtype, encoded when they are asked for. ``tiles`` are the slices."""

    def __init__(
        self, layout: Layout, rows: Sequence[Array | None], tiles: Iterable[Range], wire: np.dtype[Any], steps: int
    ) -> None:
        self._layout = layout
        self._rows = rows
        self._parts = tuple(tiles)
        self._wire = wire
        self._steps = steps

    @property
    def parts(self) -> Sequence[Range]:
        return self._parts

    def data(self, index: int) -> Array:
        return narrowed(flat_vector.gather(self._layout, self._rows, self._parts[index]), self._wire)

    def size_bytes(self, index: int) -> int:
        part = self._parts[index]
        return self._steps * (part.stop - part.start) * self._wire.itemsize

    def write(self, index: int, out: Bytes) -> None:
        values = out.view(self._wire).reshape(self._steps, -1)
        flat_vector.gather_into(values, self._layout, self._rows, self._parts[index])
