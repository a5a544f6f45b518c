"""Parameters on their way in: each encoding of them. A run takes values and knows neither dtypes nor differences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from gradwire.client.encodings.delta_copy import DeltaCopy
from gradwire.v1 import train_pb2
from gradwire.wire.encoding import Array, decode
from gradwire.wire.int8 import Blocks, Bytes

Data = bytes | memoryview | Bytes


class ParameterDecoder(ABC):
    """Answers -> values."""

    @abstractmethod
    def take(self, reply: train_pb2.Parameters, data: Data) -> Array:
        """The values ``[rows, length]`` of one message and its data; they may share memory and change with the next."""

    @abstractmethod
    def restart(self) -> None:
        """A stream has been attached: its answers do not lean on those of earlier ones."""


class DenseParameters(ParameterDecoder):
    """Elements of one dtype."""

    def __init__(self, wire: np.dtype[Any]) -> None:
        self._wire = wire

    def take(self, reply: train_pb2.Parameters, data: Data) -> Array:
        return decode(data, self._wire, reply.steps)

    def restart(self) -> None:
        pass


class DeltaParameters(ParameterDecoder):
    """INT8 differences."""

    def __init__(self, blocks: Blocks) -> None:
        self.copy = DeltaCopy(blocks)

    def take(self, reply: train_pb2.Parameters, data: Data) -> Array:
        return self.copy.take(reply, data)[None]

    def restart(self) -> None:
        self.copy.forget()
