"""Values on their way into a run: staged whole, checked, and only then put in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradwire.server.devices.base import Device, DeviceArray
from gradwire.server.engine.coverage import Coverage
from gradwire.wire.encoding import decode
from gradwire.wire.errors import InvalidSlice
from gradwire.wire.layout import Layout, Range

_PIECE = 1 << 20
"""Elements that are copied at once."""


class Upload:
    """Slices for one or more flat vectors.

    Args:
        vectors: device arrays ``[1, elements]`` that nothing else reads yet.
        wire: dtype of the slices' data.
        what: how error messages call the values.
    """

    def __init__(
        self, device: Device, layout: Layout, vectors: Sequence[DeviceArray], wire: np.dtype[Any], what: str
    ) -> None:
        self.vectors = vectors
        self._device = device
        self._wire = wire
        self._what = what
        self._coverages = [Coverage(layout, layout.present_ranges(())) for _ in vectors]

    def add(self, vector: int, offset: int, data: bytes) -> None:
        """Stages one slice. Raises InvalidSlice."""
        if vector >= len(self.vectors):
            raise InvalidSlice(f"there is no slot {vector}; expected one below {len(self.vectors)}")
        values = decode(data, self._wire)
        self._coverages[vector].add(Range(offset, offset + values.shape[1]))
        self._device.write(self.vectors[vector], offset, values)

    def require_complete(self) -> None:
        """Raises IncompleteValues when some element has not arrived."""
        for coverage in self._coverages:
            coverage.require_complete(self._what)

    def fill(self, current: Sequence[DeviceArray]) -> None:
        """Gives the elements that have not arrived the values that they have in ``current``, vector by vector."""
        for vector, coverage, source in zip(self.vectors, self._coverages, current, strict=True):
            for part in coverage.missing():
                # Piece by piece: what a device reads goes through the host.
                for start in range(part.start, part.stop, _PIECE):
                    piece = Range(start, min(start + _PIECE, part.stop))
                    self._device.write(vector, start, self._device.read(source, Range(0, 1), piece))
