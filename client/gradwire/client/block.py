"""Gradients and changes of hyperparameters as the messages of one block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gradwire.client import flat as flats
from gradwire.client.optimizers import to_override
from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.encoding import Array, narrowed
from gradwire.wire.envelope import gradients_request
from gradwire.wire.layout import Layout, Range


def gradient_rows(layout: Layout, grads: Mapping[str, Any], steps: int | None) -> list[Array | None]:
    """For each tensor its gradients as ``[K, size]``, or None; ``steps`` None: one gradient without the leading axis.

    Raises ValueError for an unknown name or a wrong shape, TypeError for a wrong dtype.
    """
    flats.check_names(layout, grads, "the gradients")
    rows: list[Array | None] = []
    for tensor in layout.tensors:
        value = grads.get(tensor.name)
        if value is None:
            rows.append(None)
            continue
        array = flats.as_array(tensor.name, value)
        flats.check_shape(tensor.name, array.shape, tensor.shape if steps is None else (steps, *tensor.shape))
        rows.append(array.reshape(steps or 1, tensor.size))
    return rows


class BlockData(ABC):
    """The slices of one block, encoded."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[Range]:
        """The elements of each slice."""

    @abstractmethod
    def data(self, index: int) -> Array:
        """The values or bytes of slice ``index``, ``[steps, ...]``, as they are sent."""


class DenseBlock(BlockData):
    """Elements of one dtype, encoded when they are asked for. ``tiles`` are the slices."""

    def __init__(
        self, layout: Layout, rows: Sequence[Array | None], tiles: Iterable[Range], wire: np.dtype[Any]
    ) -> None:
        self._layout = layout
        self._rows = rows
        self._parts = tuple(tiles)
        self._wire = wire

    @property
    def parts(self) -> Sequence[Range]:
        return self._parts

    def data(self, index: int) -> Array:
        return narrowed(flats.gather(self._layout, self._rows, self._parts[index]), self._wire)


def block_messages(
    sequence: int, header: train_pb2.BlockHeader, block: BlockData, *, begun: bool = False
) -> Iterator[bytes]:
    """The serialized messages of one block, made one by one as the connection takes them.

    ``begun``: the block is deferred and others of its messages have left; its header goes with the last one.
    """
    if not block.parts:
        empty = train_pb2.Gradients(sequence=sequence, last=True, header=header)
        yield train_pb2.TrainRequest(gradients=empty).SerializeToString()
    end = len(block.parts) - 1
    for index, part in enumerate(block.parts):
        gradients = train_pb2.Gradients(
            sequence=sequence,
            offset=part.start,
            last=index == end,
            header=header if index == (end if begun else 0) else None,
        )
        yield gradients_request(gradients, block.data(index))


def override_messages(
    groups: int, lr: float | Sequence[float] | None, overrides: Mapping[int, Mapping[str, Any]] | None
) -> list[run_pb2.Override]:
    """The changes of ``groups`` groups. Raises ValueError or TypeError."""
    changes: dict[int, dict[str, Any]] = {group: dict(values) for group, values in (overrides or {}).items()}
    for group in changes:
        if not 0 <= group < groups:
            raise ValueError(f"overrides name group {group}; this run has groups 0 to {groups - 1}")
    if lr is not None:
        value: Any = lr
        rates = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * groups
        if len(rates) != groups:
            raise ValueError(f"lr has {len(rates)} values; expected one number, or one for each of {groups}")
        for group, rate in enumerate(rates):
            changes.setdefault(group, {})["lr"] = rate
    return [to_override(group, values) for group, values in sorted(changes.items())]
