"""How much of a block has arrived, and what may follow."""

from __future__ import annotations

from dataclasses import dataclass

from gradwire.server.engine.block import GradientSlice
from gradwire.server.engine.coverage import Coverage
from gradwire.wire.errors import ProtocolViolation


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
