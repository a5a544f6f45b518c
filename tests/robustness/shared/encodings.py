"""What the wire makes of gradients and parameters, by the contract alone: see ``gradwire.v1.Encoding``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gradwire.v1 import run_pb2
from tests.robustness.shared.setting import Floats, Setting

INT8 = "INT8"
_DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT32": np.dtype(np.float32),
    "BFLOAT16": np.dtype(ml_dtypes.bfloat16),
}
_BLOCK_ELEMENTS = 256
_LARGEST_BYTES = 2**20
"""Of a message."""


def number(name: str) -> run_pb2.Encoding.ValueType:
    """As the contract has it."""
    return run_pb2.Encoding.Value(f"ENCODING_{name}")


class Block(NamedTuple):
    """Elements of one tensor that share a scale."""

    offset: int
    scale: np.float32
    codes: npt.NDArray[np.int8]

    @property
    def values(self) -> Floats:
        """What a reader makes of it."""
        with np.errstate(all="ignore"):
            found: Floats = self.codes.astype(np.float32) * self.scale
        return found


def _edges(setting: Setting) -> list[int]:
    """Where blocks begin, and the end of the last one."""
    return [*range(0, setting.size, _BLOCK_ELEMENTS), setting.size, setting.elements]


def blocks_of(setting: Setting, values: Floats) -> Iterator[Block]:
    """``values``, of the tensors from the first one on, as INT8."""
    for start, stop in pairwise(_edges(setting)):
        part = values[start:stop]
        if not part.size:
            continue
        largest = np.abs(part).max()
        scale = np.float32(largest / np.float32(127))
        inverse = np.float32(1) / scale if scale >= np.finfo(np.float32).tiny else np.float32(0)
        codes = np.zeros(part.size) if np.isnan(largest) else np.rint(part * inverse)
        yield Block(start, scale, codes.astype(np.int8))


def arrived(setting: Setting, values: Floats) -> Floats:
    """A gradient as the server decodes it."""
    if setting.gradients == INT8:
        return np.concatenate([np.empty(0, np.float32), *(block.values for block in blocks_of(setting, values))])
    return values.astype(_DTYPES[setting.gradients]).astype(np.float32)


def slices(setting: Setting, values: Floats, pieces: int) -> list[tuple[int, bytes]]:
    """A gradient in about so many slices: the element at which each begins, and its bytes."""
    if setting.gradients == INT8:
        blocks = list(blocks_of(setting, values))
        count = max(1, len(blocks) // pieces)
        groups = [blocks[first : first + count] for first in range(0, len(blocks), count)]
        return [
            (
                group[0].offset,
                b"".join([block.scale.tobytes() for block in group] + [block.codes.tobytes() for block in group]),
            )
            for group in groups
        ] or [(0, b"")]
    data, size = values.astype(_DTYPES[setting.gradients]).tobytes(), _DTYPES[setting.gradients].itemsize
    length = min(max(size, len(data) // pieces // size * size), _LARGEST_BYTES)
    return [(start // size, data[start : start + length]) for start in range(0, max(len(data), 1), length)]


def answered(setting: Setting, params: Floats) -> bytes:
    """The bytes of parameters in an answer; with INT8 of one whose values are all sent in full."""
    return params.astype(_DTYPES.get(setting.answers, np.dtype(np.float32))).tobytes()


def answer_bytes(setting: Setting) -> int:
    """The size of those."""
    return setting.elements * _DTYPES.get(setting.answers, np.dtype(np.float32)).itemsize


class Held:
    """What a worker holds of the parameters where answers are INT8 differences."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.values = np.empty(setting.elements, np.float32)

    def take(self, offset: int, data: bytes, encoding: run_pb2.Encoding.ValueType) -> int:
        """A part of an answer; returns how many elements it has."""
        if encoding != number(INT8):
            full = np.frombuffer(data, np.float32)
            self.values[offset : offset + full.size] = full
            return int(full.size)
        edges = _edges(self._setting)
        first = edges.index(offset)
        sizes = {edges[last] - offset + 4 * (last - first): last for last in range(first, len(edges))}
        last = sizes[len(data)]
        scales = np.frombuffer(data, np.float32, last - first)
        codes = np.frombuffer(data, np.int8, offset=4 * (last - first))
        for scale, (start, stop) in zip(scales, pairwise(edges[first : last + 1]), strict=True):
            self.values[start:stop] += codes[start - offset : stop - offset].astype(np.float32) * scale
        return edges[last] - offset

    def advance(self, params: Floats) -> None:
        """As the server's copy of it does that has sent ``params`` as differences."""
        for block in blocks_of(self._setting, params - self.values):
            stop = block.offset + block.codes.size
            self.values[block.offset : stop] += block.values
