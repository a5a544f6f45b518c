"""The parameters of a shared run: each round writes a new vector, and an answer keeps the one that it began with.

So the workers are answered from one vector while the next round is applied to another, and each encoding of a vector is
made once for all who get it. There are at most three vectors: the next round waits for whoever still reads the oldest,
and who does not read at all is ended by the stall time-out. A vector that nobody reads is written to again.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np

from gradwire.server.devices.base import DeviceArray
from gradwire.server.engine.run import Run
from gradwire.server.engine.threads import unless_short
from gradwire.server.memory.budget import NO_ROOM, Reservation
from gradwire.wire.encoding import Array, narrowed
from gradwire.wire.layout import Range

MOST = 3
"""Vectors; room for them is part of `RunSpec.memory_bytes`."""


class Generation:
    """The parameters after one step; nobody changes them any more."""

    def __init__(self, run: Run) -> None:
        self.step = run.step
        self.epoch = run.epoch
        self.params = run.state.params
        self.readers: list[str] = []
        """Workers who are being answered from it."""
        self._run = run
        self._whole = Range(0, run.spec.layout.elements)
        self._encoded: dict[np.dtype[Any], asyncio.Task[Array]] = {}
        self._memory: list[Reservation] = []

    def part(self, place: Range) -> Array:
        """Those elements, ``[1, n]``, in the run's dtype."""
        return self._run.device.peek(self.params, Range(0, 1), place)

    async def encoded(self, wire: np.dtype[Any], executor: Executor) -> Array | None:
        """All of them, ``[1, elements]``, as ``wire`` has them, for whoever asks; None: there is no room for that, and
        each must encode by itself."""
        if wire == self._run.spec.dtype and self._run.device.name == "cpu":
            return self._encode(wire)  # the vector itself
        making = self._encoded.get(wire)
        if making is None:
            size_bytes = self._whole.stop * wire.itemsize
            try:
                self._memory.append(self._run.budget.reserve(size_bytes, "encoded parameters"))
            except NO_ROOM:
                return None
            make = partial(self._encode, wire)
            making = asyncio.ensure_future(unless_short(executor, make, self._whole.stop))
            self._encoded[wire] = making
        await asyncio.wait({making})  # not awaited itself: who is cancelled does not cancel it for the others
        return making.result()

    def _encode(self, wire: np.dtype[Any]) -> Array:
        return narrowed(self.part(self._whole), wire)

    def release(self) -> None:
        """Frees what was made of it."""
        self._encoded.clear()
        for memory in self._memory:
            memory.release()
        self._memory.clear()


class Generations:
    """Of one shared run. Its methods are for the event loop."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._newest: Generation | None = None
        self._older: list[Generation] = []
        self._spare: list[DeviceArray] = []
        self._freed = asyncio.Event()
        self._waits = False

    def pin(self, reader: str) -> Generation:
        """The newest one, which stays as it is until `unpin`. To be called under the run's lock."""
        generation = self.newest()
        generation.readers.append(reader)
        return generation

    def unpin(self, generation: Generation, reader: str) -> None:
        """One reader less."""
        generation.readers.remove(reader)
        self._reap()

    def newest(self) -> Generation:
        """To be called as `pin`."""
        newest = self._newest
        if newest is None or newest.params is not self._run.state.params or newest.epoch != self._run.epoch:
            # Somebody else has put other values in place: their vector counts as the run's, the old one is not kept.
            if newest is not None:
                self._retire(newest)
            newest = self._newest = Generation(self._run)
        return newest

    @property
    def read(self) -> bool:
        """Whether somebody reads the newest one: then the next must be another vector."""
        return self._newest is not None and bool(self._newest.readers)

    @property
    def holding_up(self) -> list[str]:
        """The workers for whose reading `room` waits; empty: it does not."""
        return [reader for each in self._older for reader in each.readers] if self._waits else []

    async def room(self) -> DeviceArray:
        """A vector for the next one, when there is one."""
        while True:
            self._reap()
            if self._spare:
                return self._spare.pop()
            if len(self._older) + 1 < MOST:
                spec = self._run.spec
                return self._run.device.allocate(1, spec.layout.elements, spec.dtype)
            self._freed.clear()
            self._waits = True
            try:
                await self._freed.wait()
            finally:
                self._waits = False

    def give_back(self, vector: DeviceArray) -> None:
        """What `room` has returned was not used, or the run has not taken it."""
        self._spare.append(vector)

    def publish(self) -> None:
        """A round has been applied: what was the newest is of the past."""
        before, self._newest = self._newest, None
        if before is not None:
            self._retire(before)
        self._newest = Generation(self._run)

    def release(self) -> None:
        """The run has ended: frees what was made of its parameters."""
        for generation in (*self._older, self._newest):
            if generation is not None:
                generation.release()

    def _retire(self, generation: Generation) -> None:
        self._older.append(generation)
        self._reap()

    def _reap(self) -> None:
        for generation in [each for each in self._older if not each.readers]:
            self._older.remove(generation)
            generation.release()
            if not self._in_use(generation.params) and len(self._spare) + len(self._older) + 1 < MOST:
                self._spare.append(generation.params)
            self._freed.set()

    def _in_use(self, params: DeviceArray) -> bool:
        """Whether it is somebody else's too: a write of the state alone leaves the parameters where they are."""
        others = [each.params for each in (*self._older, self._newest) if each is not None]
        return any(params is other for other in (*others, self._run.state.params))
