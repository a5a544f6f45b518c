"""Which elements have arrived: no gap, no overlap unless repeats replace, nothing where nothing may be."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from gradwire.wire.errors import IncompleteValues, InvalidSlice
from gradwire.wire.layout import Layout, Range, shape_text

MAX_FRAGMENTS = 4096
"""Slices that touch merge into one fragment; more fragments than this only come from a client that wants to hurt."""


class Coverage:
    """The part of ``allowed`` (ordered, apart) that has arrived so far.

    Args:
        replace: elements may come again.
    """

    def __init__(self, layout: Layout, allowed: Sequence[Range], *, replace: bool = False) -> None:
        self._layout = layout
        self._allowed = allowed
        self._replace = replace
        self._most = max(MAX_FRAGMENTS, len(layout.names))  # each tensor may be one, where others are absent
        self._allowed_starts = [part.start for part in allowed]
        self._starts: list[int] = []
        self._stops: list[int] = []

    @property
    def allowed_elements(self) -> int:
        """Of which any may come."""
        return sum(part.stop - part.start for part in self._allowed)

    def add(self, part: Range) -> None:
        """Notes that ``part`` has arrived. Raises InvalidSlice, and then has noted nothing."""
        start, stop = part
        if stop > self._layout.elements:
            raise InvalidSlice(
                f"elements {start}..{stop} do not lie in the flat vector, which has {self._layout.elements}",
                elements=self._layout.elements,
            )
        if start == stop:
            return
        home = bisect_right(self._allowed_starts, start) - 1
        if home < 0 or stop > self._allowed[home].stop:
            raise InvalidSlice(f"elements {start}..{stop} touch a tensor that the block's header calls absent")
        # Fragments i .. j touch or overlap the part: with it they become one.
        i, j = bisect_left(self._stops, start), bisect_right(self._starts, stop)
        if i == j:
            if len(self._starts) >= self._most:
                raise InvalidSlice(f"the slices leave more than {self._most} gaps; send them in a more regular order")
        else:
            if not self._replace and any(self._starts[k] < stop and self._stops[k] > start for k in range(i, j)):
                raise InvalidSlice(f"elements {start}..{stop} overlap a slice that has arrived before")
            start, stop = min(start, self._starts[i]), max(stop, self._stops[j - 1])
        self._starts[i:j] = [start]
        self._stops[i:j] = [stop]

    def require_complete(self, what: str, required: Sequence[Range] | None = None) -> None:
        """Raises IncompleteValues naming the first tensor of which something is missing.

        Args:
            required: ranges that must have arrived; default: all that is allowed.
        """
        required = self._allowed if required is None else required
        if self._starts == [part.start for part in required] and self._stops == [part.stop for part in required]:
            return  # the usual case, and there may be many of them
        for part in required:
            position = part.start
            i = bisect_right(self._starts, position) - 1
            if i >= 0:
                position = max(position, self._stops[i])  # fragments that touch are one
            if position < part.stop:
                tensor = self._layout.tensor_at(position)
                raise IncompleteValues(
                    f"{what} ended before all elements had arrived: the first missing one is element {position}, "
                    f"in tensor {shape_text(tensor)}",
                    first_missing=position,
                )

    def missing(self) -> list[Range]:
        """The parts of ``allowed`` that have not arrived, in order."""
        gaps = []
        for part in self._allowed:
            position = part.start
            for start, stop in zip(self._starts, self._stops, strict=True):
                if stop <= position or start >= part.stop:
                    continue
                if start > position:
                    gaps.append(Range(position, start))
                position = stop
            if position < part.stop:
                gaps.append(Range(position, part.stop))
        return gaps
