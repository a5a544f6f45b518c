"""Gradients and changes of hyperparameters as the messages of one block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gradwire.client.encodings import flat_vector
from gradwire.client.optimizers import to_override
from gradwire.client.transport.shared_memory import NoRoom, SharedMemory
from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.encoding import Array, encoded, narrowed
from gradwire.wire.envelope import gradients_request
from gradwire.wire.layout import Layout, Range
from gradwire.wire.shared import Bytes


def gradient_rows(layout: Layout, grads: Mapping[str, Any], steps: int | None) -> list[Array | None]:
    """For each tensor its gradients as ``[K, size]``, or None; ``steps`` None: one gradient without the leading axis.

    Raises ValueError for an unknown name or a wrong shape, TypeError for a wrong dtype.
    """
    flat_vector.check_names(layout, grads, "the gradients")
    rows: list[Array | None] = []
    for tensor in layout.tensors:
        value = grads.get(tensor.name)
        if value is None:
            rows.append(None)
            continue
        array = flat_vector.as_array(tensor.name, value)
        flat_vector.check_shape(tensor.name, array.shape, tensor.shape if steps is None else (steps, *tensor.shape))
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


def block_messages(
    sequence: int,
    header: train_pb2.BlockHeader,
    block: BlockData,
    *,
    begun: bool = False,
    memory: SharedMemory | None = None,
) -> Iterator[bytes | None]:
    """The serialized messages of one block, made one by one as the connection takes them; see `slice_message`.

    Args:
        begun: the block is deferred and others of its messages have left; its header goes with the last one.
        memory: where the data goes, as far as there is room.
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
        yield from slice_message(gradients, block, index, memory)


def slice_message(
    gradients: train_pb2.Gradients, block: BlockData, index: int, memory: SharedMemory | None
) -> Iterator[bytes | None]:
    """A serialized TrainRequest: ``gradients``, which has no data yet, with slice ``index`` in it or in shared memory;
    before it None as often as there is no room there yet."""
    while (request := _request(gradients, block, index, memory)) is None:
        yield None
    yield request


def _request(gradients: train_pb2.Gradients, block: BlockData, index: int, memory: SharedMemory | None) -> bytes | None:
    found = NoRoom.EVER if memory is None else memory.place(block.size_bytes(index), last=gradients.last)
    if found is NoRoom.NOW:
        return None
    if isinstance(found, NoRoom):
        return gradients_request(gradients, block.data(index))
    block.write(index, found.view)
    gradients.shared.CopyFrom(found.shared)
    return train_pb2.TrainRequest(gradients=gradients).SerializeToString()


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
