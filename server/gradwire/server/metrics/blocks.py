"""Blocks of steps: how many, with what result, and how long each part of them took.

A watch is called for each step, so it notes the moments and leaves it to others to make something of them: looking at
the clock is the most of it.
"""

from __future__ import annotations

from collections import deque
from itertools import chain
from time import perf_counter

import numpy as np

from gradwire.server.metrics.histogram import STEP_SECONDS, Histogram

FOLDED_AT_ONCE = 1024
"""Blocks that wait to be counted; to fold so many takes less than a millisecond."""

LAST_BLOCKS = 256
"""Of a stream, of which it is known how long each took."""

Noted = tuple[float, float, float, float, float, int, int]
"""Of a block that was answered: when it began, was whole, was applied and was answered, for how long of that it waited
for the disk, its steps, and how many of them were skipped."""


class BlockCounters:
    """Of all streams of one server; for the event loop only, but for the numbers. `fold` brings them up to date."""

    def __init__(self) -> None:
        self.steps = 0
        """Of the blocks that were applied, those too that were skipped."""
        self.skipped_steps = 0
        self.applied = 0
        self.repeated = 0
        """Answered once more from what is remembered."""
        self.refused = 0
        self.abandoned = 0
        """Whose sender was gone before they were applied."""
        self.receive_seconds = Histogram(STEP_SECONDS)
        self.compute_seconds = Histogram(STEP_SECONDS)
        self.journal_seconds = Histogram(STEP_SECONDS)
        self.answer_seconds = Histogram(STEP_SECONDS)
        self.watches: set[BlockWatch] = set()
        """Of the streams that are open."""
        self.noted: list[Noted] = []
        """Blocks that are counted nowhere yet."""

    def watch(self) -> BlockWatch:
        """For a stream that has just been opened; to be closed with it."""
        watch = BlockWatch(self)
        self.watches.add(watch)
        return watch

    @property
    def oldest_seconds(self) -> float:
        """How long the block that has been under way longest has been so; 0: there is none."""
        began = min((watch.began for watch in self.watches if watch.began), default=0.0)
        return perf_counter() - began if began else 0.0

    def fold(self) -> None:
        """Counts what has been noted."""
        count = len(self.noted)
        if not count:
            return
        # numpy takes half as long over one long row as over many short ones.
        numbers = np.fromiter(chain.from_iterable(self.noted), np.float64, 7 * count).reshape(-1, 7)
        self.noted.clear()
        began, whole, applied, answered, journal, steps, skipped = numbers.T
        self.applied += count
        self.steps += int(steps.sum())
        self.skipped_steps += int(skipped.sum())
        self.receive_seconds.observe_all(whole - began)
        self.compute_seconds.observe_all(applied - whole - journal)
        self.journal_seconds.observe_all(journal[journal > 0])
        self.answer_seconds.observe_all(answered - applied)

    def count_unanswered(self, steps: int, skipped: int) -> None:
        """A block was applied, and its sender was gone before it had the answer."""
        self.applied += 1
        self.steps += steps
        self.skipped_steps += skipped


class BlockWatch:
    """The blocks of one stream, one after another: `begin`, `whole`, `committed`, `answered`."""

    __slots__ = (
        "_counters",
        "_journal_seconds",
        "_noted",
        "_skipped",
        "_steps",
        "applied_at",
        "began",
        "ended_at",
        "last_seconds",
        "whole_at",
    )

    def __init__(self, counters: BlockCounters) -> None:
        self._counters = counters
        self._noted = counters.noted
        self.began = 0.0
        """When the first message of the block under way came, by `time.perf_counter`; 0: there is none."""
        self.whole_at = 0.0
        """When its last message had come; 0: it has not, or was the first one."""
        self.applied_at = 0.0
        """When it was applied; 0: it has not been."""
        self.ended_at = perf_counter()
        """When the last one was answered, or the stream was opened."""
        self.last_seconds: deque[float] = deque(maxlen=LAST_BLOCKS)
        """What each of the last blocks took, from its first message to the last one of its answer."""
        self._journal_seconds = 0.0
        self._steps = 1
        self._skipped = 0

    def begin(self) -> None:
        """A message has come, the first one of a block or a further one."""
        if not self.began:
            self.began = perf_counter()

    def whole(self) -> None:
        """The last of several messages has come, and what was to be done with it before a commit has been done."""
        self.whole_at = perf_counter()

    def committed(self, steps: int, skipped: int, journal_seconds: float) -> float:
        """The block has been applied; returns when, by `time.perf_counter`.

        Args:
            steps: of the block, those too that were skipped.
            journal_seconds: for which it waited for the disk.
        """
        self._steps = steps
        self._skipped = skipped
        self._journal_seconds = journal_seconds
        self.applied_at = now = perf_counter()
        return now

    def answered(self) -> None:
        """The last message of its answer has been handed to gRPC."""
        began, applied = self.began, self.applied_at
        if not applied:  # it has failed meanwhile
            return
        whole, journal = self.whole_at or began, self._journal_seconds
        self.ended_at = now = perf_counter()
        self.last_seconds.append(now - began)
        self._noted.append((began, whole, applied, now, journal, self._steps, self._skipped))
        self.began = self.whole_at = self.applied_at = 0.0
        if len(self._noted) >= FOLDED_AT_ONCE:
            self._counters.fold()

    def repeated(self) -> None:
        """A block that had been applied before has been answered again."""
        self._counters.repeated += 1
        self.ended_at = perf_counter()
        self._end()

    def refused(self) -> None:
        """The stream ends with an error; the block under way, if there is one, with it."""
        if self.began and not self.applied_at:
            self._counters.refused += 1
        self._end()

    def close(self) -> None:
        """The stream has ended."""
        if self.began and not self.applied_at:
            self._counters.abandoned += 1
        self._end()
        self._counters.watches.discard(self)

    def _end(self) -> None:
        if self.applied_at:
            self._counters.count_unanswered(self._steps, self._skipped)
        self.began = self.whole_at = self.applied_at = 0.0
