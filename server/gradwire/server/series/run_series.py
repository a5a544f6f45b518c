"""All series of one run: those that its workers log, and the server's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.memory.budget import NO_ROOM, MemoryBudget, Reservation
from gradwire.server.series.buckets import BUCKET_BYTES, FIRST_BUCKETS, LAST_STEP, Buckets
from gradwire.server.series.scalars import Scalar, table_to_text
from gradwire.server.series.series_part import SeriesPart, part_of
from gradwire.server.series.stored_series import check_data
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.series import (
    GRADIENT_NORM,
    LR,
    MAX_SERIES,
    OWN_SERIES,
    STEPS_PER_SECOND,
    is_own,
    merged,
    name_error,
)

_MOST_RATES = OWN_SERIES - 2
"""Groups whose learning rate has a series."""

_RATE_SECONDS = 1.0
"""How often the speed is looked at, at most."""

_FIRST_BYTES = FIRST_BUCKETS * BUCKET_BYTES


class RunSeries:
    """The series of a run. Methods may be called from any thread, and none of them waits.

    Args:
        budget: what the buckets take is counted there. Where less than a quarter of it would be left, they become wider
            instead of more.
        purpose: whose they are, for refusals.
    """

    def __init__(self, budget: MemoryBudget, purpose: str) -> None:
        self.version = 0
        """Rises with each change."""
        self.history = 0
        """Rises when something is forgotten, or replaced by what was before."""
        self.logged = 0
        """How many changes there have been beside blocks."""
        self.live = True
        """Whether steps happen now, and not once more from the journal: then their speed means something, and a series
        for which there is no room is refused."""
        self._budget = budget
        self._purpose = purpose
        self._reservations: list[Reservation] = []
        self._lock = threading.Lock()
        self._series: dict[str, Buckets] = {}
        self._own: set[str] = set()
        self._rates: tuple[float, ...] = ()
        self._mark: tuple[float, int] | None = None
        """When the speed was looked at last, and the step then."""

    @property
    def size_bytes(self) -> int:
        """Of the memory that is counted."""
        return sum(reservation.size_bytes for reservation in self._reservations)

    # --- what is there -----------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Those that have values, in the order in which they have come."""
        with self._lock:
            return [name for name, buckets in self._series.items() if len(buckets)]

    def read(self, name: str, from_step: int = 0, resolution: int = 0) -> SeriesPart | None:
        """The buckets that end at ``from_step`` or later; None: there is no such series.

        Args:
            resolution: at most so many buckets, made of neighbours; 0: as they are kept.
        """
        with self._lock:
            buckets = self._series.get(name)
            if buckets is None or not len(buckets):
                return None
            table, width, last_step = buckets.table(), buckets.width, buckets.last_step
        table = table[:, table[0] + width > from_step]
        while 0 < resolution < table.shape[1]:
            width *= 2
            table = merged(table, width)
        return part_of(table, width, last_step)

    # --- what comes --------------------------------------------------------------------------------------------------

    def claim(self, scalars: Iterable[Scalar]) -> None:
        """Makes room for the series of these, where they have none: nothing can go wrong afterwards, when values come.

        Raises ProtocolViolation for a name that is none and for one too many; if they are `live`, MemoryLimitExceeded.
        """
        with self._lock:
            self._claim(scalars)

    def _claim(self, scalars: Iterable[Scalar]) -> None:
        for scalar in scalars:
            if scalar.name not in self._series:
                self._make(scalar.name)

    def _make(self, name: str) -> None:
        wrong = name_error(name)
        if wrong:
            raise ProtocolViolation(wrong)
        if len(self._series) - len(self._own) >= MAX_SERIES - OWN_SERIES:
            raise ProtocolViolation(
                f"{self._purpose} has {MAX_SERIES - OWN_SERIES} series of its workers', and {name!r} is one more; "
                f"expected at most {MAX_SERIES}, of which {OWN_SERIES} are kept for the server's own"
            )
        if self.live:
            self._reservations.append(self._budget.reserve(_FIRST_BYTES, f"the series {name!r} of {self._purpose}"))
        else:
            self._may_grow(_FIRST_BYTES)  # so little must not stop a run from coming back
        self._series[name] = Buckets(self._may_grow)

    def _may_grow(self, size_bytes: int) -> bool:
        """Sets memory aside, where there is plenty: what steps need comes first."""
        if self._budget.free_bytes - size_bytes < self._budget.limit_bytes // 4:
            return False
        try:
            self._reservations.append(self._budget.reserve(size_bytes, f"series of {self._purpose}"))
        except NO_ROOM:
            return False
        return True

    def add(self, step: int, name: str, value: float) -> None:
        """Adds a value. Raises as `claim` does."""
        self.add_scalars((Scalar(name, value),), step - 1, step)

    def add_scalars(
        self, scalars: Sequence[Scalar], before: int, step: int, applied: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Adds what a block has brought. Raises as `claim` does, which may have been asked before.

        Args:
            before: the run's step before the block.
            step: after it.
            applied: which of its steps were; None: all of them.
        """
        step = min(step, LAST_STEP)
        with self._lock:
            self._claim(scalars)
            for scalar in scalars:
                buckets = self._series[scalar.name]
                if scalar.table is None:
                    buckets.add(step, scalar.value)
                else:
                    table = scalar.table.copy()
                    table[0] = np.clip(_steps(table[0], applied) + before, 0, LAST_STEP)
                    buckets.add_buckets(table, scalar.width, step)
            self.version += 1

    def note_block(self, step: int, gradient_norm: float, learning_rates: tuple[float, ...]) -> None:
        """The server's own values after a block: how large its last gradient was, what has changed, how fast it goes.

        Never raises: where there is no room, the values are not kept.
        """
        step = min(step, LAST_STEP)
        with self._lock:
            norms = self._series.get(GRADIENT_NORM)
            if norms is None:
                self._note(GRADIENT_NORM, step, gradient_norm)
            else:
                norms.add(step, gradient_norm)
            if learning_rates != self._rates:
                self._note_rates(step, learning_rates)
            if self.live:
                now, mark = time.monotonic(), self._mark
                if mark is None:
                    self._mark = now, step
                elif now - mark[0] >= _RATE_SECONDS:
                    self._note(STEPS_PER_SECOND, step, (step - mark[1]) / (now - mark[0]))
                    self._mark = now, step
            self.version += 1

    def _note_rates(self, step: int, learning_rates: tuple[float, ...]) -> None:
        self._rates = learning_rates
        for group, rate in enumerate(learning_rates[:_MOST_RATES]):
            name = LR if len(learning_rates) == 1 else f"{LR}/{group}"
            buckets = self._series.get(name)
            if buckets is None or buckets.last != rate:
                self._note(name, step, rate)

    def _note(self, name: str, step: int, value: float) -> None:
        buckets = self._series.get(name)
        if buckets is None:
            if not self._may_grow(_FIRST_BYTES):
                return
            buckets = self._series[name] = Buckets(self._may_grow)
            self._own.add(name)
        buckets.add(step, value)

    # --- what changes with the run -----------------------------------------------------------------------------------

    def cut(self, step: int) -> None:
        """Forgets what came after a step, up to a bucket of what came before; see `Buckets.cut`."""
        with self._lock:
            for buckets in self._series.values():
                buckets.cut(step)
            self._begin_anew()

    def to_data(self, step: int) -> dict[str, Any]:
        """All of it up to ``step``, for `load`, as JSON has it."""
        with self._lock:
            tables = {name: (each.width, *each.table_until(step)) for name, each in self._series.items() if len(each)}
        return {
            name: [width, last_step, table_to_text(table)]
            for name, (width, last_step, table) in tables.items()
            if table.size
        }

    def load(self, data: Mapping[str, Any]) -> None:
        """Puts what `to_data` has made in the place of all.

        Raises as `check_data` does, and then nothing has changed; no want of memory stops it.
        """
        tables = check_data(data)
        with self._lock:
            self._release()
            for name, (width, last_step, table) in tables.items():
                self._may_grow(_FIRST_BYTES)  # so little must not stop a run from coming back
                buckets = self._series[name] = Buckets(self._may_grow)
                if is_own(name):
                    self._own.add(name)
                buckets.add_buckets(table, width, last_step)
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._mark, self._rates = None, ()
        self.version += 1
        self.history += 1

    def release(self) -> None:
        """Forgets all, and gives the memory back."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        self._series.clear()
        self._own.clear()
        for reservation in self._reservations:
            reservation.release()
        self._reservations.clear()


def _steps(rows: npt.NDArray[np.float64], applied: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.float64]:
    """The steps of a block, from 0, as the run counts them after the one before the block. Those that were skipped are
    the step before."""
    if applied is None:
        return rows + 1
    counted = np.cumsum(applied)
    return np.where(rows < 0, rows + 1, counted[np.maximum(rows, 0).astype(np.intp)])
