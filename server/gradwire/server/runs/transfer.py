"""Whole vectors out of and into a run, each as of one step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import DeviceArray, State
from gradwire.server.durability import changes
from gradwire.server.engine.run import Run, Values
from gradwire.server.engine.run_events import EventKind
from gradwire.server.optimizers.base import Floats
from gradwire.server.runs.upload import Upload
from gradwire.wire.encoding import SLICE_BYTES
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.layout import Range


@dataclass
class Snapshot:
    """Copies of some of a run's vectors, all of the same step."""

    run: Run
    step: int
    epoch: int
    tensor_steps: list[int]
    vectors: list[DeviceArray]

    def slices(self, itemsize: int) -> Iterator[tuple[int, int, Floats]]:
        """(vector index, offset, ``[1, length]`` values) in order; ``itemsize`` is that of the encoding."""
        length = SLICE_BYTES // itemsize
        elements = self.run.spec.layout.elements
        for index, vector in enumerate(self.vectors):
            for start in range(0, elements, length):
                columns = Range(start, min(start + length, elements))
                yield index, start, self.run.device.read(vector, Range(0, 1), columns)


@asynccontextmanager
async def snapshot(run: Run, pick: Callable[[Run], Sequence[DeviceArray]], vectors: int) -> AsyncIterator[Snapshot]:
    """Copies what ``pick`` names, ``vectors`` in number, under the run's lock. Raises MemoryLimitExceeded."""
    reservation = run.budget.reserve(run.spec.vector_bytes * vectors, f"a copy of {run.spec.name}")

    def copy() -> Snapshot:
        run.require_alive()
        copies = [run.device.copy(vector) for vector in pick(run)]
        return Snapshot(run, run.step, run.epoch, run.tensor_steps.tolist(), copies)

    try:
        yield await run.lock.run(copy, work=run.spec.layout.elements * vectors)
    finally:
        reservation.release()


def parameters_of(run: Run) -> Sequence[DeviceArray]:
    return [run.state.params]


def slots_of(run: Run) -> Sequence[DeviceArray]:
    return [run.state.slots[name] for name in run.spec.slots]


@contextmanager
def upload_parameters(run: Run, wire: np.dtype[np.floating]) -> Iterator[Upload]:
    """Stages a new parameter vector; `put_parameters` puts it in place."""
    with _staged(run, 1) as vectors:
        yield Upload(run.device, run.spec.layout, vectors, wire, "the parameters")


async def put_parameters(run: Run, upload: Upload, *, partial: bool = False) -> tuple[int, int]:
    """Swaps the staged parameters in; returns (step, epoch).

    ``partial``: elements that have not arrived keep the values that they have now. Else raises IncompleteValues.
    """
    if not partial:
        upload.require_complete()

    def make() -> Values:
        if partial:
            upload.fill([run.state.params])
        return Values(State(upload.vectors[0], run.state.slots), run.step, run.tensor_steps, run.groups)

    step, epoch = await changes.put(run, "the parameters", make, work=run.spec.layout.elements if partial else 0)
    run.events.note(EventKind.WRITTEN, f"{'some' if partial else 'all'} parameters", step)
    return step, epoch


def check_state(run: Run, slots: Sequence[str], step: int, tensor_steps: Sequence[int]) -> npt.NDArray[np.int64]:
    """Raises ProtocolViolation when a state does not fit the run."""
    if sorted(slots) != sorted(run.spec.slots):
        raise ProtocolViolation(f"the state has slots {sorted(slots)}; {run.spec.name} has {sorted(run.spec.slots)}")
    tensors = len(run.spec.layout.names)
    if len(tensor_steps) != tensors:
        raise ProtocolViolation(
            f"the state has {len(tensor_steps)} tensor steps; {run.spec.name} has {tensors} tensors"
        )
    if max(tensor_steps) > step:
        raise ProtocolViolation(f"the state has a tensor at step {max(tensor_steps)}, and the run at {step}")
    if step >= 2**53:  # the largest count that float64 holds exactly
        raise ProtocolViolation("the state has a step of 2^53 or more")
    return np.array(tensor_steps, np.int64)


@contextmanager
def upload_state(run: Run) -> Iterator[Upload]:
    """Stages new slots, in any order that the header names; `put_state` puts them in place."""
    with _staged(run, len(run.spec.slots)) as vectors:
        yield state_upload(run, vectors)


def state_upload(run: Run, vectors: Sequence[DeviceArray]) -> Upload:
    """An upload of slots into these vectors."""
    return Upload(run.device, run.spec.layout, vectors, run.spec.dtype, "the optimizer state")


async def put_state(
    run: Run, upload: Upload, slots: Sequence[str], step: int, tensor_steps: npt.NDArray[np.int64]
) -> tuple[int, int]:
    """Swaps the staged state in; returns (step, epoch). Raises IncompleteValues."""
    upload.require_complete()

    def make() -> Values:
        new = dict(zip(slots, upload.vectors, strict=True))
        return Values(State(run.state.params, new), step, tensor_steps, run.groups)

    step, epoch = await changes.put(run, "the optimizer state", make)
    run.events.note(EventKind.WRITTEN, "the optimizer state", step)
    return step, epoch


@contextmanager
def _staged(run: Run, count: int) -> Iterator[list[DeviceArray]]:
    """New vectors, counted until they have taken the place of the old ones, which the run's own share counts."""
    reservation = run.budget.reserve(run.spec.vector_bytes * count, f"new values of {run.spec.name}")
    try:
        yield [run.device.allocate(1, run.spec.layout.elements, run.spec.dtype) for _ in range(count)]
    finally:
        reservation.release()
