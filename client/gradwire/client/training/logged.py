"""What a worker logs: values that wait for the next block, and go with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt

from gradwire.client.encodings import flat_vector
from gradwire.client.optimizers.numbers import number
from gradwire.v1 import train_pb2
from gradwire.wire.series import FIELDS, MAX_BUCKETS, MAX_SERIES, OWN_SERIES, Table, buckets_of, merged, name_error

Part = float | tuple[Table, int]
"""A value of the next block's last step; or buckets of the run's steps, see `FIELDS`, and how many steps each has, 0
being those of many such values."""

Parts = dict[str, list[Part]]


LEAST_FOLDED = 4 * MAX_BUCKETS
"""Values and buckets that may wait before they are folded. What is left of them may double before they are again."""


class _Waiting(NamedTuple):
    parts: Parts
    names: frozenset[str]
    """Of these and of what waited before them."""


class Logged:
    """Of one run. May be used from any thread: `Run.log` waits for no step.

    There is no lock: Ctrl-C in the thread that holds one could leave it held for ever. What a deque does is whole.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        # Threads that log at the same moment may count one value too few: then it is folded later.
        self._size, self._most = 0, LEAST_FOLDED

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, parts: Parts) -> None:
        """Raises ValueError for too many series, and then has added nothing."""
        names = self._names.union(parts)
        _check_number(names)
        if parts:
            self._waiting.append(_Waiting(parts, names))
            self._size += _size(parts)
            if self._size > self._most:
                self._fold()

    @property
    def _names(self) -> frozenset[str]:
        """Of all that waits. That of the last one has them but for what was put back before it."""
        with suppress(IndexError):
            return self._waiting[-1].names | self._waiting[0].names
        return frozenset()

    def take(self) -> Parts:
        """All of it; nothing waits afterwards but what has come meanwhile."""
        taken = []
        self._size, self._most = 0, LEAST_FOLDED
        for _ in range(len(self._waiting)):
            with suppress(IndexError):  # another thread has taken it
                taken.append(self._waiting.popleft().parts)
        return joined(*taken)

    def cut(self, step: int) -> None:
        """The run is at an earlier step now: what waits of later ones goes, and what is of the next block stays."""
        self.put_back(
            {name: kept for name, values in self.take().items() if (kept := _until(values, step, whole=True))}
        )

    def put_back(self, parts: Parts) -> None:
        """What `take` has given goes with another block."""
        if parts:
            self._waiting.appendleft(_Waiting(parts, self._names.union(parts)))
            self._size += _size(parts)

    def _fold(self) -> None:
        """Bounds what waits, by as many buckets as a block may bring: nobody knows when the next one comes."""
        parts = self.take()
        try:
            parts = {name: _folded(values) for name, values in parts.items()}
        finally:
            self.put_back(parts)
        self._most = max(LEAST_FOLDED, 2 * self._size)


def values_of_block(log: Mapping[str, Any] | None, first_step: int, steps: int | None) -> Parts:
    """What is logged with a block that begins with ``first_step``. Raises ValueError, TypeError.

    Args:
        steps: of `Run.step_many`, where there may be a value for each; None: a single step.
    """
    parts: Parts = {}
    if log is None:
        return parts
    for name, value in _checked(log).items():
        _check_name(name)
        if steps is None or _is_number(value):
            parts[name] = [number(f"log[{name!r}]", value)]
            continue
        values = _vector(name, value)
        if len(values) != steps:
            raise ValueError(f"log[{name!r}] has {len(values)} values; expected {steps}, one a step, or a number")
        parts[name] = [buckets_of(values, first_step)]
    _check_number(parts.keys())
    return parts


def values_between_blocks(
    log: Mapping[str, Any] | None, at: Any, step_count: int, more: Mapping[str, Any] | None = None
) -> Parts:
    """What `Run.log` is given. Raises ValueError, TypeError.

    Args:
        step_count: of the steps that have been taken.
        more: counts where ``log`` has the same name.
    """
    parts: Parts = {}
    for name, value in {**_checked(log), **(more or {})}.items():
        _check_name(name)
        if at is None and _is_number(value):
            parts[name] = [number(name, value)]
            continue
        values = _vector(name, [value] if _is_number(value) else value)
        if at is not None:
            parts[name] = [_at_steps(name, values, at, step_count)]
        elif not 1 <= len(values) <= step_count:
            raise ValueError(f"{name!r} has {len(values)} values; expected 1 to {step_count}, of the last steps")
        else:
            parts[name] = [buckets_of(values, step_count - len(values) + 1)]
    return parts


def _checked(log: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if log is None:
        return {}
    if not isinstance(log, Mapping):
        raise TypeError(f"log is {log!r}; expected names of series and their values, such as {{'loss': 0.3}}")
    return log


def _at_steps(name: str, values: npt.NDArray[np.float64], at: Any, step_count: int) -> tuple[Table, int]:
    steps = np.atleast_1d(np.asarray(at))
    if steps.dtype.kind not in "iu" or steps.shape != values.shape or not len(steps):
        raise ValueError(f"at is {at!r}; expected {len(values)} whole numbers, one for each value of {name!r}")
    if steps[0] < 0 or steps[-1] > step_count or (steps[1:] < steps[:-1]).any():
        raise ValueError(f"at has steps {steps[0]} to {steps[-1]}; expected them not to fall, from 0 to {step_count}")
    table = np.empty((len(FIELDS), len(values)))
    table[0], table[1:6], table[6] = steps, values, 1
    return table, 1


def _check_name(name: Any) -> None:
    wrong = name_error(name) if isinstance(name, str) else f"{name!r} is no name of a series; expected a string"
    if wrong:
        raise ValueError(wrong)


def _check_number(names: Any) -> None:
    if len(names) > MAX_SERIES - OWN_SERIES:
        raise ValueError(
            f"{len(names)} series are logged; expected at most {MAX_SERIES - OWN_SERIES}, as many as a run has beside "
            "the server's own"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "ndim", 1) == 0


def _vector(name: str, value: Any) -> npt.NDArray[np.float64]:
    values = flat_vector.as_array(name, value).astype(np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name!r} has the shape {values.shape}; expected a number, or one value a step")
    return values


def joined(*parts: Parts) -> Parts:
    """The values of several, one after another."""
    found: Parts = {}
    for each in parts:
        for name, values in each.items():
            found.setdefault(name, []).extend(values)
    return found


def scalar_messages(parts: Parts, before: int, steps: int) -> list[train_pb2.Scalar]:
    """For the header of a block of ``steps`` steps, ``before`` being the run's step before it.

    Values of later steps than the block's are of a past that somebody has undone since, and left out: a step is not
    refused because of them. Raises ValueError for too many series.
    """
    _check_number(parts.keys())
    kept = {name: _until(values, before + steps) for name, values in parts.items()}
    return [_message(name, values, before, steps) for name, values in kept.items() if values]


def _size(parts: Parts) -> int:
    """Values and buckets."""
    return sum(1 if isinstance(part, float) else part[0].shape[1] for values in parts.values() for part in values)


def _folded(parts: list[Part]) -> list[Part]:
    """The same values in as few buckets as a message that began with them would have.

    What comes after a value of the next block's last step counts as of that step, too: steps do not fall.
    """
    first = next((index for index, part in enumerate(parts) if not _has_steps(part)), len(parts))
    folded: list[Part] = []
    if first:
        folded.append(_bounded([part for part in parts[:first] if _has_steps(part)]))
    if parts[first:]:
        table = np.concatenate([_of_last_step(part, 0)[0] for part in parts[first:]], axis=1)
        folded.append((merged(table, 1), 0))
    return folded


def _bounded(tables: list[tuple[Table, int]]) -> tuple[Table, int]:
    """One table of at most `MAX_BUCKETS` buckets, and their width."""
    width = max(width for _, width in tables)
    table = np.concatenate([table for table, _ in tables], axis=1)
    np.maximum.accumulate(table[0], out=table[0])  # values of one name may have come in any order
    if len(tables) > 1 or table.shape[1] > MAX_BUCKETS:
        table = merged(table, width)
    while table.shape[1] > MAX_BUCKETS:
        width *= 2
        table = merged(table, width)
    return table, width


def _has_steps(part: Part) -> TypeGuard[tuple[Table, int]]:
    """False: it is of the next block's last step, whenever that comes."""
    return not isinstance(part, float) and part[1] > 0


def _until(parts: list[Part], step: int, *, whole: bool = False) -> list[Part]:
    """Without the buckets that begin after a step. Args: whole: those go, too, that end after it."""
    kept: list[Part] = []
    for part in parts:
        if not _has_steps(part):
            kept.append(part)
            continue
        table, width = part
        table = table[:, table[0] + (width - 1) * whole <= step]
        if table.size:
            kept.append((table, width))
    return kept


def _message(name: str, parts: list[Part], before: int, steps: int) -> train_pb2.Scalar:
    first = parts[0]
    if len(parts) == 1 and isinstance(first, float):
        return train_pb2.Scalar(name=name, values=(first,))
    last_step = before + steps
    table, width = _bounded([part if _has_steps(part) else _of_last_step(part, last_step) for part in parts])
    rows = (table[0] - (before + 1)).astype(np.int64)
    message = train_pb2.Scalar(name=name, block_steps=rows.tolist())
    if width == 1 and (table[6] == 1).all():
        message.values.extend(table[1].tolist())
        return message
    message.buckets.bucket_steps = width
    for field, row in zip(FIELDS[1:], table[1:], strict=True):
        getattr(message.buckets, field).extend(row.astype(np.int64 if field == "count" else np.float64).tolist())
    return message


def _of_last_step(part: Part, step: int) -> tuple[Table, int]:
    """Values that are of this step, whatever they say of themselves."""
    if isinstance(part, float):
        return np.array([[step, part, part, part, part, part, 1]]).T, 1
    table = part[0].copy()
    table[0] = step
    return table, 1
