"""Layouts <-> the groups of a ``RunSpec``. Of tens of thousands of tensors each access counts."""

from __future__ import annotations

from collections.abc import Iterable

from gradwire.v1 import run_pb2
from gradwire.wire.envelope import field, varint
from gradwire.wire.layout import Layout, check_tensor_count

_TENSOR = field(run_pb2.Group.TENSORS_FIELD_NUMBER)
_NAME = field(run_pb2.Tensor.NAME_FIELD_NUMBER)


def decode_layout(groups: Iterable[run_pb2.Group]) -> Layout:
    """Raises InvalidSpec."""
    tensors = [group.tensors for group in groups]
    check_tensor_count(sum(map(len, tensors)))  # before anything is built from them
    return Layout([[(tensor.name, tuple(tensor.shape[:])) for tensor in group] for group in tensors])


def encode_tensors(layout: Layout) -> tuple[bytes, ...]:
    """For each group a serialized ``Group`` that has its tensors and nothing else."""
    shapes = {shape: run_pb2.Tensor(shape=shape).SerializeToString() for shape in set(layout.shapes)}
    tensors = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        text = name.encode()
        tensor = _NAME + varint(len(text)) + text + shapes[shape]
        tensors.append(_TENSOR + varint(len(tensor)) + tensor)
    stops = [*layout.first_tensors[1:], len(tensors)]
    return tuple(b"".join(tensors[start:stop]) for start, stop in zip(layout.first_tensors, stops, strict=True))
