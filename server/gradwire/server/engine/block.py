"""The values that travel between the servicer and a run: one block of steps and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradwire.server.engine.spec import Durability
from gradwire.server.memory.shared_memory import SharedSlice
from gradwire.server.series.scalars import Scalar
from gradwire.wire.shared import Place


class Returns(IntEnum):
    """What a block is answered with."""

    LAST = 1
    TRAJECTORY = 2
    NONE = 3


@dataclass(frozen=True)
class Contribution:
    """What a gradient of a shared run says of itself; see ``gradwire.v1.Contribution``."""

    weight: float
    base_step: int
    base_epoch: int


@dataclass(frozen=True)
class BlockHeader:
    """What holds for a whole block of ``steps`` gradients."""

    steps: int = 1
    returns: Returns = Returns.LAST
    absent_tensors: frozenset[int] = frozenset()
    overrides: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Group index -> hyperparameter name -> new value."""
    deferred: bool = False
    """Nothing is answered before the last message, whose header holds; the others' say no more than ``steps``."""
    contribution: Contribution | None = None
    """In shared runs, and only there."""
    scalars: tuple[Scalar, ...] = ()
    """What is logged with the block."""

    def logging(self, scalars: tuple[Scalar, ...]) -> BlockHeader:
        """The same, but for what is logged: as `dataclasses.replace` has it, in a quarter of the time."""
        again = object.__new__(BlockHeader)
        vars(again).update(vars(self), scalars=scalars)
        return again


class GradientSlice(NamedTuple):
    """One Gradients message: ``data`` holds ``steps`` rows of the elements from ``offset`` on, still encoded."""

    sequence: int
    offset: int
    data: bytes | memoryview | SharedSlice
    last: bool
    header: BlockHeader | None


class Kind(IntEnum):
    """What became of a contribution; see ``gradwire.v1.Outcome``."""

    ACCEPTED = 1
    STALE = 2
    REFUSED = 3
    DROPPED = 4


@dataclass(frozen=True)
class Outcome:
    """The one outcome that a contribution has; see ``gradwire.v1.Outcome``."""

    kind: Kind
    reason: str
    message: str
    round: int = 0
    share: float = 0.0
    contributors: int = 0
    total_weight: float = 0.0
    staleness: int = 0


class Receipt(NamedTuple):
    """What a committed block says of itself; see ``gradwire.v1.Receipt``."""

    step: int
    gradient_norm: float
    learning_rates: tuple[float, ...]
    skipped_steps: tuple[int, ...] = ()
    repeated: bool = False
    received_bytes: int = 0
    durability: Durability = Durability.MEMORY
    contribution: Outcome | None = None
    epoch: int = 0
    """Of the parameters that a contribution is answered with."""


class Waiting(NamedTuple):
    """Why a block is not answered yet."""

    reason: str
    since_seconds: float


class Placed(NamedTuple):
    """Where data has been written in shared memory, encoded."""

    place: Place
    size_bytes: int


class Reply(NamedTuple):
    """A part of an answer, not yet encoded. ``values`` is ``[rows, length]``; None: there is no data. ``written``: they
    lie where the client reads them already."""

    sequence: int
    offset: int = 0
    values: npt.NDArray[np.floating[Any]] | None = None
    receipt: Receipt | None = None
    written: bool = False
