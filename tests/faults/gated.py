"""A device that stops in the middle of its work until the test lets it go on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import Bools, DeviceArray, Segment, State, Write
from gradwire.server.devices.cpu import CpuDevice
from tests.faults.hosted import WAIT_SECONDS

BULK = 70_000
"""Elements of a run whose steps leave the event loop; a device that is held up there would stop the whole server."""


class Gate:
    """Holds up one kind of operation from its making to `release`; a context manager that releases."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._released = threading.Event()

    def wait_entered(self) -> None:
        """Returns when an operation has come to the gate."""
        assert self._entered.wait(WAIT_SECONDS), "no operation has come to the gate"

    def release(self) -> None:
        self._released.set()

    def pass_through(self) -> None:
        """The operation's side: waits."""
        self._entered.set()
        assert self._released.wait(WAIT_SECONDS), "nobody has released the gate"

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class GatedDevice(CpuDevice):
    """The CPU device, with gates before ``commit``, ``early``, ``copy``, ``write``, and ``committed`` after one.

    Only vectors of BULK elements or more come to a gate. ``commits`` counts the updates that changed such a state in
    place; ``early`` ones, which go to another state, are no commits yet.
    """

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.commits = 0
        self._gates: dict[str, Gate] = {}

    def hold(self, operation: str) -> Gate:
        """Holds up every ``operation`` from now on until the gate is released."""
        gate = self._gates[operation] = Gate()
        return gate

    def _pass(self, operation: str, vector: npt.NDArray[Any]) -> None:
        gate = self._gates.get(operation)
        if gate is not None and vector.shape[1] >= BULK:
            gate.pass_through()

    def copy(self, source: DeviceArray, into: DeviceArray | None = None) -> DeviceArray:
        self._pass("copy", source)
        return super().copy(source, into)

    def write(self, target: DeviceArray, offset: int, values: npt.NDArray[Any]) -> None:
        self._pass("write", target)
        super().write(target, offset, values)

    def update(
        self,
        state: State,
        gradients: DeviceArray,
        segments: Sequence[Segment],
        *,
        target: State | None = None,
        start: int = 0,
        applied: Bools | None = None,
        out: DeviceArray | None = None,
        out_start: int = 0,
        write: Write = Write.NOTHING,
    ) -> None:
        self._pass("commit" if target is None else "early", state.params)
        super().update(
            state,
            gradients,
            segments,
            target=target,
            start=start,
            applied=applied,
            out=out,
            out_start=out_start,
            write=write,
        )
        if target is None:
            self.commits += state.params.shape[1] >= BULK
            self._pass("committed", state.params)


def gradient(size: int, seed: int, steps: int | None = None) -> npt.NDArray[np.float32]:
    """Repeatable gradients ``[size]`` or ``[steps, size]``."""
    shape = (size,) if steps is None else (steps, size)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
