"""One scalar over the steps of a run, in at most 2,048 buckets however many values there are."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gradwire.wire.series import FIELDS, MAX_BUCKETS, Table, merged

FIRST_BUCKETS = 64
"""Room of a new series."""

LAST_STEP = 2**53 - 1
"""Values of later steps count as of this one, beyond which float64 tells no two neighbours apart."""

BUCKET_BYTES = 8 * len(FIELDS)

_FEW = 16
"""So many buckets are sooner added one by one."""


class Buckets:
    """Values in the order of their steps, in buckets of ``width`` steps that begin at multiples of it.

    The width is the least power of two at which all values lie in `MAX_BUCKETS` buckets, or in those that there is room
    for: what is kept does not depend on how the values came. Only buckets with values are kept.

    Args:
        may_grow: asked for so many bytes more; False: there is no room, and the buckets become wider instead.
    """

    def __init__(self, may_grow: Callable[[int], bool] = lambda size_bytes: True) -> None:
        self.width = 1
        self.last_step = -1
        """Of the newest value; -1: there is none."""
        self._may_grow = may_grow
        self._table: Table = np.empty((len(FIELDS), FIRST_BUCKETS))
        self._closed = 0
        # The newest bucket, as plain numbers: nearly all values go there.
        self._start = -1
        self._first = self._minimum = self._maximum = self._last = self._total = 0.0
        self._count = 0

    def __len__(self) -> int:
        """How many buckets there are."""
        return self._closed + bool(self._count)

    @property
    def last(self) -> float:
        """The newest value; NaN, too, where a cut has left none."""
        return self._last

    @property
    def size_bytes(self) -> int:
        """Of the room that is taken."""
        return BUCKET_BYTES * int(self._table.shape[1])

    def add(self, step: int, value: float) -> None:
        """Adds a value. One of an earlier step than the newest counts as of that."""
        if step - step % self.width > self._start:
            self._begin(step)
        if not self._count:
            self._first = self._minimum = self._maximum = value
        else:
            least, largest = self._minimum, self._maximum
            if value < least or least != least:
                self._minimum = value
            if value > largest or largest != largest:
                self._maximum = value
        self._last = value
        self._total += value
        self._count += 1
        if step > self.last_step:
            self.last_step = step

    def _begin(self, step: int) -> None:
        """A new bucket, where the step belongs to no older one at the width that it takes."""
        if len(self) == self._table.shape[1] and not self._grows(len(self) + 1):
            table, self.width = self.table(), self.width * 2
            while True:
                table = merged(table, self.width)
                if len(table[0]) < self._table.shape[1] or step - step % self.width == table[0, -1]:
                    break
                self.width *= 2
            self._put(table)
        start = step - step % self.width
        if start == self._start:
            return
        if self._count:
            self._table[:, self._closed] = self._newest
            self._closed += 1
        self._start, self._total, self._count = start, 0.0, 0

    @property
    def _newest(self) -> tuple[float, ...]:
        return self._start, self._first, self._minimum, self._maximum, self._last, self._total, self._count

    def _grows(self, buckets: int) -> bool:
        """Makes room for so many buckets, if there may be."""
        capacity = self._table.shape[1]
        while capacity < min(buckets, MAX_BUCKETS):
            capacity *= 2
        more = (capacity - self._table.shape[1]) * BUCKET_BYTES
        if buckets > MAX_BUCKETS or not self._may_grow(more):
            return False
        table = np.empty((len(FIELDS), capacity))
        table[:, : self._closed] = self._table[:, : self._closed]
        self._table = table
        return True

    def add_buckets(self, table: Table, width: int, last_step: int) -> None:
        """Adds buckets of ``width`` steps, a power of two, none of whose values is of a later step than ``last_step``.

        Args:
            table: ``[7, n]``, see `gradwire.wire.series.FIELDS`; n >= 1, steps do not fall and are none before ours.
        """
        start = int(table[0, -1])
        last_step = min(last_step, start - start % width + width - 1)
        if width <= self.width and table.shape[1] <= _FEW and (table[6] == 1).all():
            for step, value in zip(table[0].tolist(), table[1].tolist(), strict=True):
                self.add(int(step), value)
        else:
            if width > self.width:
                self.width = width
                self._put(merged(self.table(), width))
            table = table.copy()
            np.maximum(table[0], self._start, out=table[0])
            self._append(merged(table, self.width))
        self.last_step = max(last_step, self.last_step)

    def _append(self, table: Table) -> None:
        """Adds buckets of our width, none of which begins before our newest."""
        if self._count and table[0, 0] == self._start:
            newest = np.array(self._newest)[:, None]
            (joined,) = merged(np.concatenate((newest, table[:, :1]), axis=1), self.width).T.tolist()
            self._set_newest(joined)
            table = table[:, 1:]
        buckets = len(self) + table.shape[1]
        if buckets > self._table.shape[1] and not self._grows(buckets):
            table = np.concatenate((self.table(), table), axis=1)
            while table.shape[1] > self._table.shape[1] and not self._grows(table.shape[1]):
                self.width *= 2
                table = merged(table, self.width)
            self._put(table)
        elif table.shape[1]:
            if self._count:
                self._table[:, self._closed] = self._newest
                self._closed += 1
            more = table.shape[1] - 1
            self._table[:, self._closed : self._closed + more] = table[:, :-1]
            self._closed += more
            self._set_newest(table[:, -1].tolist())

    def cut(self, step: int) -> None:
        """Forgets what came after a step. The bucket that lies across it goes whole: it cannot be told apart."""
        last_step, table = self.table_until(step)
        self._put(table)
        self.last_step = last_step

    def table_until(self, step: int) -> tuple[int, Table]:
        """What `cut` would leave: the step of the newest value, at most, and a copy of the buckets."""
        table = self.table()
        if self.last_step <= step:
            return self.last_step, table
        table = table[:, table[0] + self.width - 1 <= step]
        return (int(table[0, -1]) + self.width - 1 if table.size else -1), table

    def table(self) -> Table:
        """A copy of all buckets, ``[7, n]``."""
        table = np.empty((len(FIELDS), len(self)))
        table[:, : self._closed] = self._table[:, : self._closed]
        if self._count:
            table[:, -1] = self._newest
        return table

    def _put(self, table: Table) -> None:
        """Puts buckets for which there is room in the place of all."""
        self._closed = max(0, table.shape[1] - 1)
        self._table[:, : self._closed] = table[:, : self._closed]
        self._start, self._last, self._total, self._count = -1, math.nan, 0.0, 0
        if table.shape[1]:
            self._set_newest(table[:, -1].tolist())

    def _set_newest(self, bucket: list[float]) -> None:
        start, self._first, self._minimum, self._maximum, self._last, self._total, count = bucket
        self._start, self._count = int(start), int(count)
