"""What all contenders compute: AMSGrad in torch's form over the same parameters with the same gradients."""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.child import Child

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Problem:
    """``elements`` float32 in ``tensors`` equal tensors (what does not divide is left out), and how they are updated.

    Every process makes the same numbers for itself.
    """

    elements: int
    tensors: int = 1
    device: str = "cpu"
    """Of whoever updates: ``cpu`` or ``cuda``. Clients are on the CPU."""
    threads: int = 1
    """Of every process that computes."""

    @classmethod
    def from_case(cls, case: str, device: str, threads: int) -> Problem:
        """``ELEMENTS`` or ``ELEMENTSxTENSORS``."""
        elements, _, tensors = case.partition("x")
        return cls(int(elements), int(tensors or 1), device, threads)

    @property
    def size(self) -> int:
        """Elements of one tensor."""
        return self.elements // self.tensors

    @property
    def size_bytes(self) -> int:
        """Of all tensors together."""
        return 4 * self.size * self.tensors

    def parameters(self) -> list[Array]:
        """Initial values, new arrays."""
        return self._numbers(1)

    def gradients(self) -> list[Array]:
        """The gradients of every step, new arrays."""
        return self._numbers(2)

    def _numbers(self, seed: int) -> list[Array]:
        flat = 2 * np.random.default_rng(seed).random(self.size * self.tensors, np.float32) - np.float32(1)
        return [flat[at : at + self.size] for at in range(0, flat.size, self.size)]

    def to_text(self) -> str:
        """For a command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Problem:
        return cls(**json.loads(text))


class Unavailable(Exception):
    """Raised when a contender cannot run here; the message says why."""


class Contender(abc.ABC):
    """A client with its server, which lives in a process of its own. Made from a `Problem`."""

    _child: Child

    @abc.abstractmethod
    def step(self, gradients: Sequence[Array]) -> Sequence[Array]:
        """Sends the gradients, one array a tensor, and returns the updated parameters as the client has them then."""

    def server_seconds(self) -> float:
        """Processor time that its server, where it has one, has used so far, in all threads."""
        return self._child.cpu_seconds()

    @abc.abstractmethod
    def close(self) -> None:
        """Ends both."""
