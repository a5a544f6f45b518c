"""How the parameters of a stream are written: replies -> bytes, one part for each message, whatever the encoding.

A session hands replies over and knows neither dtypes nor blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gradwire.server.encodings.deltas import DeltaBaseline
from gradwire.server.encodings.quantizing import warm_up
from gradwire.server.engine.block import BlockHeader, Reply, Returns
from gradwire.server.memory.budget import MemoryBudget
from gradwire.wire.encoding import SLICE_BYTES, Array, narrowed
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.int8 import SCALE_BYTES, SLICE_ELEMENTS, Blocks
from gradwire.wire.layout import Range


class EncodedPart(NamedTuple):
    """One message's worth of a reply. ``data`` is ``[rows, ...]``, its bytes are what is sent."""

    offset: int
    data: Array
    delta: bool | None = None
    """With INT8 replies, whether these are INT8 differences, not float32 values."""


class Encoder(ABC):
    """Replies -> parts, one for each message."""

    def __init__(self) -> None:
        self._sent_bytes = 0
        self.slice_bytes = SLICE_BYTES
        """What `tiles` aims at."""

    @property
    @abstractmethod
    def least_row_bytes(self) -> int:
        """Size of one row of the longest part of a reply that cannot be cut."""

    @property
    def dense(self) -> np.dtype[Any] | None:
        """What elements are written as, where each is for itself."""
        return None

    @abstractmethod
    def vector_bytes(self, elements: int) -> int:
        """Size of one row of a whole vector, about."""

    @abstractmethod
    def check(self, header: BlockHeader) -> None:
        """Makes sure that the answer which ``header`` asks for can be sent. Raises ProtocolViolation, and
        MemoryLimitExceeded where that needs memory."""

    @abstractmethod
    def tiles(self, part: Range, rows: int) -> Iterator[Range]:
        """Cuts ``part`` so that ``rows`` rows of each piece make a message of a good size."""

    @abstractmethod
    def _encode(self, offset: int, values: Array) -> Iterable[EncodedPart]: ...

    def encode(self, reply: Reply) -> list[EncodedPart]:
        """The values of one reply, in order; none where it has none."""
        parts = [] if reply.values is None else list(self._encode(reply.offset, reply.values))
        for part in parts:
            self._sent_bytes += part.data.nbytes
        return parts

    def take_sent_bytes(self) -> int:
        """Size of all parts since the last call."""
        sent, self._sent_bytes = self._sent_bytes, 0
        return sent

    @abstractmethod
    def restart(self) -> None:
        """Replies that follow do not lean on earlier ones."""

    @abstractmethod
    def release(self) -> None:
        """Frees the memory; the object is of no further use."""


class DenseEncoder(Encoder):
    """Elements of one dtype."""

    def __init__(self, wire: np.dtype[Any]) -> None:
        super().__init__()
        self._wire = wire

    @property
    def least_row_bytes(self) -> int:
        return self._wire.itemsize

    @property
    def dense(self) -> np.dtype[Any]:
        return self._wire

    def vector_bytes(self, elements: int) -> int:
        return elements * self._wire.itemsize

    def check(self, header: BlockHeader) -> None:
        pass

    def tiles(self, part: Range, rows: int) -> Iterator[Range]:
        length = max(1, self.slice_bytes // (rows * self._wire.itemsize))
        for start in range(part.start, part.stop, length):
            yield Range(start, min(start + length, part.stop))

    def _encode(self, offset: int, values: Array) -> list[EncodedPart]:
        return [EncodedPart(offset, narrowed(values, self._wire))]

    def restart(self) -> None:
        pass

    def release(self) -> None:
        pass


class DeltaEncoder(Encoder):
    """INT8 differences from what the worker holds.

    The baseline is made with the first block that is answered with parameters, and not at the attachment: the same
    worker's older stream, which the attachment ends, gives its own back first. The first object of a process compiles,
    which takes a second.
    """

    def __init__(self, blocks: Blocks, budget: MemoryBudget, run: str) -> None:
        super().__init__()
        warm_up()
        self._blocks = blocks
        self._budget = budget
        self._run = run
        self._baseline: DeltaBaseline | None = None

    @property
    def baseline(self) -> DeltaBaseline | None:
        """What the worker holds; None: nothing is known of it."""
        return self._baseline

    @property
    def least_row_bytes(self) -> int:
        return 4  # answers have one row

    def vector_bytes(self, elements: int) -> int:
        return elements + SCALE_BYTES * self._blocks.count

    def check(self, header: BlockHeader) -> None:
        if header.returns is Returns.TRAJECTORY:
            raise ProtocolViolation(
                "INT8 answers are differences from the worker's parameters, which a trajectory has none of; "
                "expected returns LAST or NONE, or another parameter_encoding"
            )
        if header.returns is Returns.LAST and self._baseline is None:
            purpose = f"what a worker holds of {self._run}, for INT8 answers,"
            self._baseline = DeltaBaseline(self._blocks, self._budget, purpose)

    def tiles(self, part: Range, rows: int) -> Iterator[Range]:
        start = part.start
        while start < part.stop:
            stop = min(start + SLICE_ELEMENTS, part.stop)
            if stop < part.stop:
                stop = max(self._blocks.start(self._blocks.before(stop)), start + 1)
            yield Range(start, stop)
            start = stop

    def _encode(self, offset: int, values: Array) -> Iterator[EncodedPart]:
        (row,) = values
        if self._baseline is None:
            length = SLICE_BYTES // 4
            for start in range(0, len(row), length):
                full = narrowed(values[:, start : start + length], np.dtype("<f4"))
                yield EncodedPart(offset + start, full, delta=False)
            return
        for part in self._baseline.encode(offset, row):
            yield EncodedPart(*part)

    def restart(self) -> None:
        if self._baseline is not None:
            self._baseline.drop()

    def release(self) -> None:
        if self._baseline is not None:
            self._baseline.release()
