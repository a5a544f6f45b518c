"""The parameters of a run as this process holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.client.calls.remote_values import RemoteValues, Written
from gradwire.client.encodings import flat_vector
from gradwire.client.transport.retry import Attempts
from gradwire.client.transport.shared_memory import SharedMemory
from gradwire.wire.encoding import Array
from gradwire.wire.layout import Range


class LocalParameters:
    """A copy of the server's parameters, and what is known of how old it is.

    Args:
        vector: their values, which this takes over; None: they are to be read.
        double_buffer: answers are written to a second vector first.
        step_count, epoch: of the run, when it had these values.
    """

    def __init__(
        self,
        remote: RemoteValues,
        vector: npt.NDArray[Any] | None,
        *,
        double_buffer: bool,
        step_count: int,
        epoch: int,
    ) -> None:
        self.layout = remote.layout
        self.vector: npt.NDArray[Any] = np.empty(self.layout.elements, remote.dtype) if vector is None else vector
        self.incoming = np.empty_like(self.vector) if double_buffer else self.vector
        """Where answers are written."""
        self.by_name = flat_vector.views(self.layout, self.vector)
        self.step_count = step_count
        self.epoch = epoch
        """Of shared runs: the epoch at ``step_count``. Both say of which moment's parameters these are a copy."""
        self.known = vector is not None
        """Whether they have ever been the server's."""
        self.stale = False
        """See `Run`."""
        self.mixed = False
        """Whether a part of an answer may have been written to them, and nothing has made them whole since."""
        self.behind: set[int] = set()
        """Tensors (by index) of which the server has newer values that nobody asked for."""
        self.refreshes = 0
        self._remote = remote

    def move_to(self, memory: SharedMemory) -> None:
        """From now on they lie where the server writes them."""
        self.vector = self.incoming = memory.move(self.vector)
        self.by_name = flat_vector.views(self.layout, self.vector)

    def refresh(self, attempts: Attempts) -> None:
        """Reads all of them anew."""
        values = self._remote.read(attempts, to_go_on=True)
        self.vector[:] = values.vector
        self.step_count = values.step
        self.epoch = values.epoch
        self.known = True
        self.refreshes += 1
        self.behind.clear()
        self.stale = self.mixed = False

    def are_written(self, written: Written, known: int, *, whole: bool) -> bool:
        """After these values, or, not ``whole``, some of them, were written to a shared run: whether all are the run's.
        Others may have stepped since the rest came, or have written.

        Args:
            known: the epoch before.
        """
        alone = written.step == self.step_count and written.epoch == known + 1 and not self.stale
        if whole or alone:
            self.step_count, self.epoch, self.known = written.step, written.epoch, True
        return whole or alone

    def out_of_the_way(self, rows: Sequence[Array | None]) -> list[Array | None]:
        """Gradients, copied where they lie where the answer goes: parts would be sent that it has overwritten."""
        return [row if row is None or not np.may_share_memory(row, self.incoming) else row.copy() for row in rows]

    def take_incoming(self, ranges: Sequence[Range]) -> None:
        """An answer is whole."""
        if self.incoming is not self.vector:
            self.take(self.incoming, ranges)

    def take(self, values: npt.NDArray[Any], ranges: Sequence[Range]) -> None:
        """Puts those elements of another vector into this one."""
        for part in ranges:
            self.vector[part.start : part.stop] = values[part.start : part.stop]
