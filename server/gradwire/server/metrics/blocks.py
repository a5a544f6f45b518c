"""Blocks of steps: how many, with what result, and how long each part of them took.

Everything here is called for each step: a few additions and looks at the clock.
"""

from __future__ import annotations

from time import perf_counter

from gradwire.server.metrics.histogram import STEP_SECONDS, Histogram


class BlockCounters:
    """Of all streams of one server."""

    def __init__(self) -> None:
        self.steps = 0
        """Applied; those that were skipped do not count."""
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

    def watch(self) -> BlockWatch:
        """For a stream that has just been opened; to be closed with it."""
        watch = BlockWatch(self)
        self.watches.add(watch)
        return watch

    @property
    def oldest_seconds(self) -> float:
        """How long the block that has been under way longest has been so; 0: there is none. On the event loop."""
        began = min((watch.began for watch in self.watches if watch.began), default=0.0)
        return perf_counter() - began if began else 0.0


class BlockWatch:
    """The blocks of one stream, one after another: `begin`, `whole`, `committed`, `answered`."""

    __slots__ = ("_applied", "_committed", "_counters", "_journal_seconds", "_whole", "began")

    def __init__(self, counters: BlockCounters) -> None:
        self._counters = counters
        self.began = 0.0
        """When the first message of the block under way came, by `time.perf_counter`; 0: there is none."""
        self._whole = 0.0
        self._committed = 0.0
        self._journal_seconds = 0.0
        self._applied = False

    def begin(self) -> None:
        """A message has come, the first one of a block or a further one."""
        if not self.began:
            self.began = perf_counter()

    def whole(self) -> None:
        """The last message has come, and what was to be done with it before a commit has been done."""
        self._whole = perf_counter()

    def committed(self, steps: int, skipped: int, journal_seconds: float) -> None:
        """The block has been applied.

        Args:
            steps: of the block, those too that were skipped.
            journal_seconds: for which it waited for the disk.
        """
        self._committed = perf_counter()
        self._journal_seconds = journal_seconds
        self._applied = True
        counters = self._counters
        counters.applied += 1
        counters.steps += steps - skipped
        counters.skipped_steps += skipped

    def answered(self) -> None:
        """The last message of its answer has been handed to gRPC."""
        counters = self._counters
        counters.answer_seconds.observe(perf_counter() - self._committed)
        counters.receive_seconds.observe(self._whole - self.began)
        counters.compute_seconds.observe(self._committed - self._whole - self._journal_seconds)
        if self._journal_seconds:
            counters.journal_seconds.observe(self._journal_seconds)
        self._end()

    def repeated(self) -> None:
        """A block that had been applied before has been answered again."""
        self._counters.repeated += 1
        self._end()

    def refused(self) -> None:
        """The stream ends with an error; the block under way, if there is one, with it."""
        if self.began and not self._applied:
            self._counters.refused += 1
        self._end()

    def close(self) -> None:
        """The stream has ended."""
        if self.began and not self._applied:
            self._counters.abandoned += 1
        self._end()
        self._counters.watches.discard(self)

    def _end(self) -> None:
        self.began = 0.0
        self._applied = False
