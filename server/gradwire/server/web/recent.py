"""How long blocks have taken lately, of the server as a whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gradwire.server.metrics.blocks import BlockCounters

WINDOW_SECONDS = 60.0

_PHASES = ("receive", "compute", "journal", "answer")


class Recent:
    """Of the last minute, as far as somebody has looked; on the event loop.

    Args:
        blocks: are folded by looking.
    """

    def __init__(self, blocks: BlockCounters) -> None:
        self._blocks = blocks
        self._looks: deque[tuple[float, dict[str, list[int]]]] = deque()

    def look(self, now: float) -> dict[str, Any]:
        """Percentiles of each phase, in seconds. Args: now: seconds of any clock."""
        self._blocks.fold()
        counts = {phase: list(getattr(self._blocks, f"{phase}_seconds").counts) for phase in _PHASES}
        while self._looks and self._looks[0][0] < now - WINDOW_SECONDS:
            self._looks.popleft()
        self._looks.append((now, counts))
        before = self._looks[0][1]
        seconds = {}
        for phase in _PHASES:
            bounds = getattr(self._blocks, f"{phase}_seconds").bounds
            news = [new - old for new, old in zip(counts[phase], before[phase], strict=True)]
            seconds[phase] = percentiles(bounds, news)
        return seconds


def percentiles(bounds: Sequence[float], counts: Sequence[int]) -> dict[str, float] | None:
    """The median, and those of 90 and 99 per cent, as if values lay evenly within their buckets; None: there are none.

    Args:
        bounds: upper ends of all buckets but the last, which has none.
    """
    total = sum(counts)
    if not total:
        return None
    edges = list(pairwise((0.0, *bounds)))
    found = {}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        left = share * total
        value = bounds[-1]
        for (low, high), count in zip(edges, counts, strict=False):
            if left <= count:
                value = low + (high - low) * left / count
                break
            left -= count
        found[name] = float(f"{value:.3g}")
    return found
