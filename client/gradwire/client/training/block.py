"""One block of steps as its caller wants it: the gradients that are sent, and the values that come back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.client.encodings import flat_vector
from gradwire.client.overrides import override_messages
from gradwire.v1 import train_pb2
from gradwire.wire.encoding import Array
from gradwire.wire.layout import Layout

RETURNS = {
    "last": train_pb2.RETURNS_LAST,
    "trajectory": train_pb2.RETURNS_TRAJECTORY,
    "none": train_pb2.RETURNS_NONE,
}


class Block:
    """K steps, each with a gradient of the same tensors.

    Args:
        rows: for each tensor its gradients, ``[K, size]``, or None.
        trajectory: ``[K, elements]``, where the parameters after each step go; None: nobody wants them.
        ahead: tensors (by index) whose gradients may have left already and have not changed since.
    """

    def __init__(
        self,
        layout: Layout,
        header: train_pb2.BlockHeader,
        rows: list[Array | None],
        trajectory: npt.NDArray[Any] | None = None,
        ahead: frozenset[int] = frozenset(),
    ) -> None:
        self.header = header
        self.rows = rows
        self.trajectory = trajectory
        self.ahead = ahead
        self.absent = frozenset([index for index, row in enumerate(rows) if row is None])
        self.present = layout.indices - self.absent if self.absent else layout.indices
        self.ranges = layout.present_ranges(self.absent)
        whole = header.HasField("contribution")  # others have changed what is absent here
        self.answer_ranges = layout.present_ranges(frozenset()) if whole else self.ranges
        self.answered = header.returns != train_pb2.RETURNS_NONE
        """Whether parameters come back."""
        if self.absent:
            header.absent_tensors.extend(sorted(self.absent))


def one_step(
    layout: Layout,
    grads: Mapping[str, Any],
    lr: float | Sequence[float] | None,
    overrides: Mapping[int, Mapping[str, Any]] | None,
    ahead: Collection[str],
    contribution: train_pb2.Contribution | None = None,
) -> Block:
    """The block of `Run.step`; ``contribution``: what it says of itself in a shared run. Raises ValueError or
    TypeError."""
    header = train_pb2.BlockHeader(
        steps=1,
        returns=train_pb2.RETURNS_LAST,
        overrides=override_messages(layout.groups, lr, overrides),
        contribution=contribution,
    )
    unchanged = frozenset([layout.index[name] for name in ahead])
    return Block(layout, header, flat_vector.gradient_rows(layout, grads, None), ahead=unchanged)


def several_steps(
    layout: Layout,
    dtype: np.dtype[Any],
    grads: Mapping[str, Any],
    returns: str,
    lr: float | Sequence[float] | None,
    overrides: Mapping[int, Mapping[str, Any]] | None,
) -> Block:
    """The block of `Run.step_many`. Raises ValueError or TypeError."""
    arrays = {name: flat_vector.as_array(name, value) for name, value in grads.items() if value is not None}
    counts = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"the gradients have {sorted(counts)} rows; expected the same K >= 1 for all tensors")
    steps = counts.pop()
    header = train_pb2.BlockHeader(
        steps=steps, returns=RETURNS[returns], overrides=override_messages(layout.groups, lr, overrides)
    )
    rows = flat_vector.gradient_rows(layout, arrays, steps)
    trajectory = np.empty((steps, layout.elements), dtype) if returns == "trajectory" else None
    return Block(layout, header, rows, trajectory)
