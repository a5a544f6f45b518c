"""How much of a block has arrived, and what may follow."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

from gradwire.server.encodings.decoders import Decoder
from gradwire.server.engine.block import BlockHeader, GradientSlice
from gradwire.server.engine.coverage import Coverage
from gradwire.server.memory.shared_memory import SharedSlice
from gradwire.wire.encoding import Array
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.layout import Layout, Range


@dataclass(eq=False)
class ArrivedSlice:
    """A slice whose elements are known to belong to its block, still encoded."""

    decoder: Decoder
    place: Range
    data: bytes | memoryview | SharedSlice
    steps: int
    alone: bool
    """Whether it is a whole block that waits for nothing: it need not be kept."""

    def settled(self) -> Array:
        """Its values, as nobody can change them any more: what is checked must be what is applied."""
        data = self.data.copy() if isinstance(self.data, SharedSlice) else self.data
        return self.decoder.values(self.place, data, self.steps)

    def to_be_copied(self) -> Array:
        """Its values, for who reads each of them once, to copy it: the copy is what settles shared data."""
        data = self.data.view() if isinstance(self.data, SharedSlice) else self.data
        return self.decoder.values(self.place, data, self.steps)


class Here(NamedTuple):
    """How much of a block has arrived."""

    received_bytes: int
    """Encoded gradients."""
    expected_bytes: int
    """Of all of them; of a deferred block those too that may be absent in the end."""
    last_at: float
    """When the last message came, by `time.perf_counter`."""


@dataclass(eq=False)
class IncomingBlock:
    """What has arrived of one sequence."""

    sequence: int
    steps: int
    deferred: bool
    """Nothing is answered before the last message, which says what holds; see ``gradwire.v1.BlockHeader.deferred``."""
    coverage: Coverage
    received_bytes: int = 0
    """Encoded gradients so far."""
    last_at: float = 0.0
    """When a message came last, by `time.perf_counter`."""

    @classmethod
    def begun(cls, sequence: int, header: BlockHeader, layout: Layout) -> IncomingBlock:
        """A block of which only the header has arrived. That of a deferred one does not know yet what is absent."""
        absent = frozenset[int]() if header.deferred else header.absent_tensors
        coverage = Coverage(layout, layout.present_ranges(absent), replace=header.deferred)
        return cls(sequence, header.steps, header.deferred, coverage)

    def add(self, part: GradientSlice, decoder: Decoder) -> Range:
        """Notes that ``part`` has arrived; returns the elements that it holds. Raises InvalidSlice."""
        size_bytes = len(part.data)
        place = decoder.place(part.offset, size_bytes, self.steps)
        self.coverage.add(place)
        self.received_bytes += size_bytes
        self.last_at = perf_counter()
        return place

    def here(self, decoder: Decoder) -> Here:
        """How much of it is."""
        expected_bytes = self.steps * decoder.vector_bytes(self.coverage.allowed_elements)
        return Here(self.received_bytes, max(self.received_bytes, expected_bytes), self.last_at)

    def check_next(self, part: GradientSlice) -> None:
        """Raises ProtocolViolation unless ``part`` may follow what has arrived."""
        if part.sequence != self.sequence:
            raise ProtocolViolation(
                f"a message of block {part.sequence} came before block {self.sequence} was whole; "
                "send one block at a time"
            )
        header = part.header
        if not self.deferred:
            if header is not None:
                raise ProtocolViolation(
                    f"a second header for block {self.sequence}; only its first message carries one"
                )
        elif header is None:
            if part.last:
                raise ProtocolViolation(
                    f"the last message of block {self.sequence}, which is deferred, has no header; "
                    f"expected one with deferred and steps = {self.steps}"
                )
        elif header.deferred and part.last and header.steps != self.steps:
            raise ProtocolViolation(
                f"block {self.sequence} began with steps = {self.steps}, and its last header says {header.steps}; "
                f"expected {self.steps}",
                expected_steps=self.steps,
            )
