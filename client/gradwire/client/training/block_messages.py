"""The messages of one block, made while the connection takes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gradwire.client.encodings.block import BlockData
from gradwire.client.transport.shared_memory import NoRoom, SharedMemory
from gradwire.v1 import train_pb2
from gradwire.wire.envelope import gradients_request


def block_messages(
    sequence: int,
    header: train_pb2.BlockHeader,
    block: BlockData,
    *,
    begun: bool = False,
    memory: SharedMemory | None = None,
) -> Iterable[bytes | None]:
    """The serialized messages of one block, made one by one as the connection takes them; see `slice_message`.

    Args:
        begun: the block is deferred and others of its messages have left; its header goes with the last one.
        memory: where the data goes, as far as there is room.
    """
    if len(block.parts) == 1 and memory is None:  # nothing to wait for
        only = train_pb2.Gradients(sequence=sequence, offset=block.parts[0].start, last=True, header=header)
        return (gradients_request(only, block.data(0)),)
    return _messages(sequence, header, block, begun, memory)


def _messages(
    sequence: int, header: train_pb2.BlockHeader, block: BlockData, begun: bool, memory: SharedMemory | None
) -> Iterator[bytes | None]:
    if not block.parts:
        empty = train_pb2.Gradients(sequence=sequence, last=True, header=header)
        yield train_pb2.TrainRequest(gradients=empty).SerializeToString()
    end = len(block.parts) - 1
    fits = end > 0 and memory is not None and memory.holds(map(block.size_bytes, range(end + 1)))
    for index, part in enumerate(block.parts):
        gradients = train_pb2.Gradients(
            sequence=sequence,
            offset=part.start,
            last=index == end,
            header=header if index == (end if begun else 0) else None,
        )
        yield from slice_message(gradients, block, index, memory, fits=fits)


def slice_message(
    gradients: train_pb2.Gradients, block: BlockData, index: int, memory: SharedMemory | None, *, fits: bool = False
) -> Iterator[bytes | None]:
    """A serialized TrainRequest: ``gradients``, which has no data yet, with slice ``index`` in it or in shared memory;
    before it None as often as there is no room there yet. ``fits``: all of its block has."""
    while (request := _request(gradients, block, index, memory, fits)) is None:
        yield None
    yield request


def _request(
    gradients: train_pb2.Gradients, block: BlockData, index: int, memory: SharedMemory | None, fits: bool
) -> bytes | None:
    found = NoRoom.EVER if memory is None else memory.place(block.size_bytes(index), last=gradients.last or fits)
    if found is NoRoom.NOW:
        return None
    if isinstance(found, NoRoom):
        return gradients_request(gradients, block.data(index))
    block.write(index, found.view)
    gradients.shared.CopyFrom(found.shared)
    return train_pb2.TrainRequest(gradients=gradients).SerializeToString()
