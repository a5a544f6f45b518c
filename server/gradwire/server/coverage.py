"""Which elements have arrived: no gap, no overlap, nothing where nothing may be."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from gradwire.wire.errors import IncompleteValues, InvalidSlice
from gradwire.wire.layout import Layout, Range, shape_text

MAX_FRAGMENTS = 4096
"""Slices that touch merge into one fragment; more fragments than this only come from a client that wants to hurt."""


class Coverage:
    """The part of ``allowed`` (ordered, apart) that has arrived so far."""

    def __init__(self, layout: Layout, allowed: Sequence[Range]) -> None:
        self._layout = layout
        self._allowed = allowed
        self._allowed_starts = [part.start for part in allowed]
        self._starts: list[int] = []
        self._stops: list[int] = []

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
        i = bisect_right(self._starts, start)
        if (i > 0 and self._stops[i - 1] > start) or (i < len(self._starts) and self._starts[i] < stop):
            raise InvalidSlice(f"elements {start}..{stop} overlap a slice that has arrived before")
        joins_left = i > 0 and self._stops[i - 1] == start
        joins_right = i < len(self._starts) and self._starts[i] == stop
        if joins_left and joins_right:
            self._stops[i - 1] = self._stops.pop(i)
            del self._starts[i]
        elif joins_left:
            self._stops[i - 1] = stop
        elif joins_right:
            self._starts[i] = start
        elif len(self._starts) >= MAX_FRAGMENTS:
            raise InvalidSlice(f"the slices leave more than {MAX_FRAGMENTS} gaps; send them in a more regular order")
        else:
            self._starts.insert(i, start)
            self._stops.insert(i, stop)

    def require_complete(self, what: str) -> None:
        """Raises IncompleteValues naming the first tensor of which something is missing."""
        i = 0
        for allowed in self._allowed:
            # Fragments never reach over the border of an allowed range, but they may join at one.
            position = allowed.start
            while i < len(self._starts) and self._starts[i] <= position < self._stops[i]:
                position = self._stops[i]
                i += 1
            if position < allowed.stop:
                tensor = self._layout.tensor_at(position)
                raise IncompleteValues(
                    f"{what} ended before all elements had arrived: the first missing one is element {position}, "
                    f"in tensor {shape_text(tensor)}",
                    first_missing=position,
                )
