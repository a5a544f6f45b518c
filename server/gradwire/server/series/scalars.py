"""What a block brings of one scalar, and what is journaled of it."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.series import FIELDS, MAX_BUCKETS, MAX_SERIES, OWN_SERIES, Table, name_error

_MAX_WIDTH = 2**31
_MAX_STEP = 2**53
_MAX_COUNT = 2**32


class Scalar(NamedTuple):
    """Values of one block, in the order of its steps."""

    name: str
    value: float = math.nan
    """Where ``table`` is None: the only one, of the last step."""
    table: Table | None = None
    """``[7, n]``, see `gradwire.wire.series.FIELDS`, but that the first row counts the block's own steps, from 0; below
    0: those before it."""
    width: int = 1
    """Steps of a bucket, a power of two."""

    def check(self, steps: int) -> None:
        """Raises ProtocolViolation unless a client may send it with a block of ``steps`` steps."""
        wrong = name_error(self.name)
        if wrong:
            raise ProtocolViolation(wrong)
        table, width = self.table, self.width
        if table is None:
            return
        rows, counts = table[0], table[6]
        if not 1 <= len(rows) <= MAX_BUCKETS:
            raise ProtocolViolation(
                f"{self.name!r} comes in {len(rows)} values or buckets; expected 1 to {MAX_BUCKETS}: put them together"
            )
        if not 1 <= width <= _MAX_WIDTH or width & (width - 1):
            raise ProtocolViolation(f"{self.name!r} has buckets of {width} steps; expected a power of two")
        if rows[0] < -_MAX_STEP or rows[-1] >= steps or (rows[1:] < rows[:-1]).any():
            raise ProtocolViolation(
                f"{self.name!r} has values of steps {int(rows.min())} to {int(rows.max())} of a block of {steps}; "
                f"expected numbers that do not fall, up to {steps - 1}, or one value alone"
            )
        if (counts < 1).any() or (counts > _MAX_COUNT).any():
            raise ProtocolViolation(
                f"{self.name!r} has buckets without values, or of too many; expected 1 to {_MAX_COUNT} in each"
            )

    @property
    def mean(self) -> float:
        """Of all its values."""
        return self.value if self.table is None else float(self.table[5].sum() / self.table[6].sum())


def check_scalars(scalars: Sequence[Scalar], steps: int) -> None:
    """Raises ProtocolViolation unless a client may send these with a block of ``steps`` steps."""
    if len(scalars) > MAX_SERIES - OWN_SERIES:
        raise ProtocolViolation(
            f"a block brings values of {len(scalars)} series; expected at most {MAX_SERIES - OWN_SERIES}"
        )
    if len(scalars) > 1 and len({scalar.name for scalar in scalars}) < len(scalars):
        raise ProtocolViolation("a block brings a series twice; expected each name once")
    for scalar in scalars:
        scalar.check(steps)


def combined(parts: Sequence[tuple[float, Sequence[Scalar]]]) -> tuple[Scalar, ...]:
    """One value for each name: the mean of those that have one, by their weights.

    Args:
        parts: weight and scalars of each contribution, in an order that is always the same.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for weight, scalars in parts:
        for scalar in scalars:
            found.setdefault(scalar.name, []).append((weight, scalar.mean))
    return tuple(Scalar(name, _mean(weighted)) for name, weighted in found.items())


def _mean(weighted: Sequence[tuple[float, float]]) -> float:
    if len(weighted) == 1:
        return weighted[0][1]
    total = sum(weight for weight, _ in weighted)
    return sum(weight / total * value for weight, value in weighted)


def scalars_to_data(scalars: Sequence[Scalar]) -> list[list[Any]]:
    """As JSON has them, to the last bit."""
    return [
        [each.name, each.value] if each.table is None else [each.name, each.width, table_to_text(each.table)]
        for each in scalars
    ]


def scalars_from_data(data: Sequence[Sequence[Any]]) -> tuple[Scalar, ...]:
    return tuple(
        Scalar(name, rest[0]) if len(rest) == 1 else Scalar(name, table=table_from_text(rest[1]), width=rest[0])
        for name, *rest in data
    )


def table_to_text(table: Table) -> str:
    """Base 64 of little-endian numbers, row after row."""
    return base64.b64encode(np.ascontiguousarray(table, "<f8").data).decode()


def table_from_text(text: str) -> Table:
    """Raises ValueError for what `table_to_text` has not made."""
    return np.frombuffer(base64.b64decode(text), "<f8").reshape(len(FIELDS), -1).astype(np.float64)
