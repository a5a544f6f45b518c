"""What an optimizer is to the rest of the server."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Kernel:
    """What a device compiles: a scalar update function and the choices that are fixed at compile time.

    ``update(p, g, *slots, *constants, *varying, *statics) -> (p, *slots)`` is plain Python over scalars of one float
    type. It must use no float literal (that would widen float32 arithmetic to float64) and no name but ``sqrt``.
    """

    update: Callable[..., Any]
    slots: tuple[str, ...]
    """All slots that ``update`` takes, in order."""
    used_slots: tuple[str, ...]
    """Those that it reads and writes under these statics; the others get a placeholder, and their result is dropped."""
    constants: int
    """Number of scalars that are the same for all steps of a block."""
    varying: int
    """Number of scalars that each step has its own of."""
    statics: tuple[bool, ...]
    """Trailing arguments of ``update``, fixed at compile time."""

    def __hash__(self) -> int:
        return hash((self.update, self.statics))  # each step looks its compiled code up by this


class Hyperparameters(Protocol):
    """The hyperparameters of one group, checked and immutable. Each optimizer has its own class.

    It is a dataclass. Its fields are floats, which a block may override, bools and enums, which are chosen once; they
    have the names that the contract gives them.
    """

    @property
    def kernel(self) -> Kernel:
        """What to compile for this group."""

    def constants(self) -> tuple[float, ...]:
        """The scalars that do not change with the step, in float64."""

    def varying(self, first_step: int, first_t: int, steps: int, dtype: np.dtype[Any]) -> Floats:
        """The scalars of ``steps`` steps, ``[steps, kernel.varying]``: computed in float64, then cast to ``dtype``.

        ``first_step`` is the run's step (what schedules see), ``first_t`` the tensor's own t (what bias correction
        sees); both count from 1.
        """

    def learning_rate(self, step: int) -> float:
        """The learning rate in force at the run's ``step``."""

    def replace(self, changes: Mapping[str, float]) -> Hyperparameters:
        """A checked copy with other numbers. Raises InvalidHyperparameter."""


@runtime_checkable
class Primed(Protocol):
    """Hyperparameters whose slots do not all begin with zeros."""

    @property
    def initial_values(self) -> Mapping[str, float]:
        """What each element of a slot is before the first step; slots that are not named begin with 0."""


def initial_values(group: Hyperparameters) -> Mapping[str, float]:
    """What the slots that ``group`` uses begin with, where that is not 0."""
    named = group.initial_values if isinstance(group, Primed) else {}
    return {slot: value for slot, value in named.items() if value != 0 and slot in group.kernel.used_slots}


@functools.cache
def field_types(kind: Any) -> Mapping[str, Any]:
    """The hyperparameters of an optimizer's class, in order: float, bool or an IntEnum each."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@functools.cache
def numbers(kind: Any) -> tuple[str, ...]:
    """Those of its hyperparameters that are numbers."""
    return tuple(name for name, found in field_types(kind).items() if found is float)
