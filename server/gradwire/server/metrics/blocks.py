"""Blocks of steps: how many, with what result, and how long each part of them took.

A watch is called for each step, so it notes the moments, as one tuple, and makes something of them only when there are
many: in the midst of a step each line costs several times what it costs among its like.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from time import perf_counter

import numpy as np

from gradwire.server.metrics.histogram import STEP_SECONDS, Histogram

FOLDED_AT_ONCE = 1024
"""Blocks that wait to be counted; to fold so many takes less than a millisecond."""

LAST_BLOCKS = 256
"""Of a stream, of which it is known how long each took."""

Noted = tuple[float, float, float, float, float, int, int, deque[float]]
"""Of a block that was answered: when it began, was whole (0: with its first message), was applied and was answered, for
how long of that it waited for the disk, its steps, how many of them were skipped, and where its stream keeps how long
its last blocks took."""


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
        began, whole, applied, answered, journal, steps, skipped, last = zip(*self.noted, strict=True)
        self.noted.clear()
        self.applied += count
        self.steps += sum(steps)
        self.skipped_steps += sum(skipped)
        begun, done, ended = np.array(began), np.array(applied), np.array(answered)
        for seconds, of_stream in zip((ended - begun).tolist(), last, strict=True):
            of_stream.append(seconds)
        if any(whole):
            ready = np.array([at or first for at, first in zip(whole, began, strict=True)])
            self.receive_seconds.observe_all(ready - begun)
        else:  # each came in one message
            ready = begun
            self.receive_seconds.observe_nothing(count)
        if any(journal):
            waited = np.array(journal)
            self.journal_seconds.observe_all(waited[waited > 0])
            ready = ready + waited
        self.compute_seconds.observe_all(done - ready)
        self.answer_seconds.observe_all(ended - done)

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
        "_last_seconds",
        "_noted",
        "_skipped",
        "_steps",
        "applied_at",
        "began",
        "ended_at",
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
        self._last_seconds: deque[float] = deque(maxlen=LAST_BLOCKS)
        self._journal_seconds = 0.0
        self._steps = 1
        self._skipped = 0

    def last_seconds(self) -> Collection[float]:
        """What each of the last blocks took, from its first message to the last one of its answer."""
        self._counters.fold()
        return self._last_seconds

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
        applied = self.applied_at
        if not applied:  # it has failed meanwhile
            return
        self.ended_at = now = perf_counter()
        noted = self._noted
        noted.append(
            (
                self.began,
                self.whole_at,
                applied,
                now,
                self._journal_seconds,
                self._steps,
                self._skipped,
                self._last_seconds,
            )
        )
        self.began = self.whole_at = self.applied_at = 0.0
        if len(noted) >= FOLDED_AT_ONCE:
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
