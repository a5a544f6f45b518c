"""How far a server is with bringing its runs back: one thread does that, and any other may ask."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from time import perf_counter
from typing import TypeVar

from gradwire.server.store.base import Entry, Snapshot, Store
from gradwire.wire.sizes import amount

T = TypeVar("T")

log = logging.getLogger(__name__)

TELL_SECONDS = 10.0
"""So often the log says how far it is."""


class RecoveryProgress:
    """Plain numbers."""

    def __init__(self) -> None:
        self.runs = 0
        """That are back, or have been found damaged."""
        self.total_runs = 0
        self.snapshot_bytes = 0
        """That have been read; where a snapshot is damaged, those of an older one are too."""
        self.total_snapshot_bytes = 0
        """Of the newest ones."""
        self.run = ""
        """That is being brought back; empty: none is."""
        self.blocks = 0
        """Of its journal that have been applied."""
        self.total_blocks = 0
        """About; 0: not known."""
        self._began = self._ended = 0.0

    def begin(self, damaged: int, snapshot_bytes: Collection[int]) -> None:
        """It is known now what there is.

        Args:
            damaged: runs whose very description is, and which are done with.
            snapshot_bytes: of each other run, how large its newest snapshot is.
        """
        self.runs, self.total_runs = damaged, damaged + len(snapshot_bytes)
        self.total_snapshot_bytes = sum(snapshot_bytes)
        self._began = perf_counter()

    def begin_run(self, name: str) -> None:
        """The one before, if there was one, is done with."""
        self._end_run()
        self.blocks = self.total_blocks = 0
        self.run = name

    def noting_snapshots(self, store: Store, uid: str, begin: Callable[[Snapshot], T]) -> Callable[[Snapshot], T]:
        """``begin``, which makes a run of one of its snapshots, noted."""
        known = store.acknowledged(uid)
        sizes = {(info.number, info.step): info.size_bytes for info in store.snapshots(uid)}

        def noted(snapshot: Snapshot) -> T:
            number = snapshot.position.number
            self.snapshot_bytes += sizes.get((number, snapshot.step), 0)
            self.blocks, self.total_blocks = 0, 0 if known is None else max(0, known.number - number)
            return begin(snapshot)

        return noted

    def noting_blocks(self, replay: Callable[[T, Entry], int]) -> Callable[[T, Entry], int]:
        """``replay``, which applies a block, noted."""

        def noted(run: T, entry: Entry) -> int:
            step = replay(run, entry)
            self.blocks += 1
            return step

        return noted

    def end(self) -> None:
        """All that can be is back."""
        self._end_run()
        self._ended = perf_counter()

    def _end_run(self) -> None:
        self.runs += bool(self.run)
        self.run = ""

    @property
    def seconds(self) -> float:
        """For which it has been going on, or did."""
        return (self._ended or perf_counter()) - self._began if self._began else 0.0

    @property
    def text(self) -> str:
        """For people."""
        if not self._began:
            return "it has not begun"
        size = amount(self.snapshot_bytes, max(self.snapshot_bytes, self.total_snapshot_bytes))
        text = f"{self.runs} of {self.total_runs} runs, {size} of snapshots, in {self.seconds:.0f} s"
        run, blocks, total = self.run, self.blocks, self.total_blocks
        if run:
            text += f"; now {run}"
        if run and blocks:
            text += f", {blocks} of about {max(blocks, total)} blocks of its journal"
        return text

    async def tell(self) -> None:
        """Logs again and again how far it is, until it is cancelled."""
        while True:
            await asyncio.sleep(TELL_SECONDS)
            log.info("bringing runs back: %s", self.text)
