"""What a server and the way to it can do, measured through the public contract."""

from __future__ import annotations

import contextlib
import queue
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
import numpy as np

from gradwire.client.connection import Server
from gradwire.client.errors import translate
from gradwire.client.optimizers.adam import TorchAdam
from gradwire.client.run import Run
from gradwire.client.transport.retry import RetryPolicy
from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.encoding import SLICE_BYTES
from gradwire.wire.errors import GradwireError, MemoryLimitExceeded, QuotaExceeded, TooManyParameters

ENCODINGS = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1 + 4 / 256}
"""The encodings that are tried, and their bytes an element."""

_RETRY = RetryPolicy(deadline_seconds=5.0)
_FIRST_ELEMENTS = 2**16
_MOST_ELEMENTS = 2**24
_MOST_BLOCK_BYTES = 64 * 2**20
"""Of one block's gradients in float32, which this process must hold."""


@dataclass(frozen=True)
class Link:
    """The parts that a step's time is made of."""

    round_trip_seconds: float
    """One step of one element, median."""
    upload_bytes_per_second: float
    download_bytes_per_second: float
    commit_seconds: float
    """What the server needs, when the last slice of ``elements`` has arrived, for the norm and the update."""
    elements: int

    @property
    def updates_per_second(self) -> float:
        """Elements that the server updates in a second."""
        return self.elements / self.commit_seconds

    def block_seconds(self, elements: int, bytes_per_element: float, steps: int) -> float:
        """A rough guess at the time of a block, both directions one after the other."""
        size = elements * bytes_per_element
        return (
            self.round_trip_seconds
            + steps * size / self.upload_bytes_per_second
            + size / self.download_bytes_per_second
        )


@dataclass(frozen=True)
class Cell:
    """The time of one step with one encoding, in blocks of one length."""

    parameters: int
    encoding: str
    block: int
    step_seconds: float
    """The block's time divided by its steps."""
    measured_elements: int
    """Length of the vector that was measured; with fewer than ``parameters`` the time is extrapolated."""
    received_bytes: int
    """What the server received for one block of that vector, and what it sent."""
    sent_bytes: int
    error: str = ""
    """Why there is no time: what the server refused."""

    @property
    def extrapolated(self) -> bool:
        return self.measured_elements < self.parameters


class TemporaryRun:
    """A run of one tensor ``x`` of random values, under a name of its own; a context manager that deletes it."""

    def __init__(self, server: Server, elements: int, non_finite: str = "reject") -> None:
        self._server = server
        self.name = f"doctor-{uuid.uuid4().hex}"
        self._elements = elements
        self._non_finite = non_finite
        self._run: Run | None = None

    def __enter__(self) -> TemporaryRun:
        values = {"x": np.random.default_rng(0).standard_normal(self._elements, np.float32)}
        try:
            self._run = self._server.create_run(
                self.name, values, TorchAdam(amsgrad=True), non_finite=self._non_finite, retry=_RETRY
            )
        except BaseException:
            self._delete()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        finally:
            self._delete()

    def attach(self, encoding: str = "float32") -> Run:
        """The run, with both directions in this encoding."""
        self.close()
        self._run = self._server.attach(
            self.name, gradient_encoding=encoding, parameter_encoding=encoding, retry=_RETRY
        )
        return self._run

    def close(self) -> None:
        """Lets go of the run, which stays on the server."""
        run, self._run = self._run, None
        if run is not None:
            run.close()

    def _delete(self) -> None:
        with contextlib.suppress(GradwireError):  # it was never made, or the server is gone
            self._server.delete_run(self.name)


def measure_link(server: Server, seconds: float) -> Link:
    """Round trip, both throughputs and the update, each for about ``seconds``. Raises GradwireError."""
    with TemporaryRun(server, 1) as temporary:
        run = temporary.attach()
        gradient = {"x": np.ones(1, np.float32)}
        round_trip = _median_seconds(lambda: run.step(gradient), seconds, at_least=20)
    elements = _long_vector(server, max(seconds / 4, 4 * round_trip))
    gradient = {"x": np.random.default_rng(1).standard_normal((1, elements), np.float32)}
    with TemporaryRun(server, elements) as temporary:
        run = temporary.attach()
        upload = _median_seconds(lambda: run.step_many(gradient, returns="none"), seconds)
        for _ in range(2):  # memory is used for the first time
            run.step_many(gradient)
        whole = _median_seconds(lambda: run.step_many(gradient), seconds)
    commit = _commit_seconds(server, gradient["x"], wait_seconds=2 * upload)
    size = 4.0 * elements
    return Link(
        round_trip_seconds=round_trip,
        upload_bytes_per_second=size / max(upload - round_trip - commit, 0.1 * upload),
        download_bytes_per_second=size / max(whole - upload, 0.1 * whole),
        commit_seconds=commit,
        elements=elements,
    )


def measure_steps(
    server: Server, link: Link, parameters: int, encodings: list[str], blocks: list[int], seconds: float
) -> Iterator[Cell]:
    """Real blocks of a run of ``parameters`` elements, or of as many as take about ``seconds`` a block.

    The time of a shorter vector is extrapolated: what it takes beyond the round trip grows with its length. A cell that
    the server refuses says why. Raises ConnectionLost.
    """
    for steps in blocks:
        for encoding in encodings:
            elements = min(parameters, max(1, _MOST_BLOCK_BYTES // (4 * steps)))
            guess = link.block_seconds(elements, ENCODINGS[encoding], steps)
            if guess > seconds:
                elements = max(1, int(elements * seconds / guess))
            yield _cell(server, link, parameters, elements, encoding, steps, seconds)


def _cell(
    server: Server, link: Link, parameters: int, elements: int, encoding: str, steps: int, seconds: float
) -> Cell:
    gradients = {"x": np.random.default_rng(2).standard_normal((steps, elements), np.float32)}
    received, sent = 0, 0

    def block() -> None:
        nonlocal received, sent
        run.step_many(gradients)
        if run.last_receipt is not None:
            received, sent = run.last_receipt.received_bytes, run.last_receipt.sent_bytes

    try:
        with TemporaryRun(server, elements) as temporary:
            run = temporary.attach(encoding)
            for _ in range(2):  # the first answer may be longer than later ones, and memory is used for the first time
                block()
            taken = _median_seconds(block, seconds, at_least=5)
    except GradwireError as error:
        if error.applied is None:  # not a refusal
            raise
        return Cell(parameters, encoding, steps, float("nan"), elements, 0, 0, error.message)
    if elements < parameters:
        beyond = max(taken - link.round_trip_seconds, 0.0)
        taken = link.round_trip_seconds + beyond * parameters / elements
    return Cell(parameters, encoding, steps, taken / steps, elements, received, sent)


def _long_vector(server: Server, seconds: float) -> int:
    """Elements of which one step takes ``seconds``, or as many as the server or this process has room for."""
    elements, fits = _FIRST_ELEMENTS, 0
    while elements <= _MOST_ELEMENTS:
        gradient = {"x": np.ones((1, elements), np.float32)}
        try:
            with TemporaryRun(server, elements) as temporary:
                run = temporary.attach()
                taken = _median_seconds(lambda: run.step_many(gradient, returns="none"), 0)  # noqa: B023, called at once
        except (MemoryLimitExceeded, QuotaExceeded, TooManyParameters):
            if not fits:
                raise
            break
        fits = elements
        if taken >= seconds:
            break
        elements *= 4
    return fits


def _commit_seconds(server: Server, gradient: np.ndarray[Any, Any], wait_seconds: float) -> float:
    """What the norm and the update of this gradient take.

    Its round trip is that of a short gradient on a stream of the same kind: such a stream has neither the lane nor the
    shared memory that make a step's round trip short where client and server share a host.
    """
    taken = []
    for flat in (gradient.reshape(-1), gradient.reshape(-1)[:2]):
        # A step that may be skipped cannot be computed while it arrives.
        with TemporaryRun(server, flat.size, non_finite="skip") as temporary:
            temporary.close()
            taken.append(_last_slice_seconds(server, temporary.name, flat, wait_seconds))
    return max(taken[0] - taken[1], 1e-6)  # less than the noise of a round trip says no more than "little"


def _last_slice_seconds(server: Server, name: str, flat: np.ndarray[Any, Any], wait_seconds: float) -> float:
    """Time from the last slice, which is small, to the receipt, when all other slices have arrived long before."""
    requests: queue.SimpleQueue[train_pb2.TrainRequest | None] = queue.SimpleQueue()
    length = SLICE_BYTES // flat.itemsize
    end = flat.size - min(256, flat.size // 2)
    attach = train_pb2.Attach(
        run=f"runs/{name}", worker_id=f"doctor-{uuid.uuid4().hex}", gradient_encoding=run_pb2.ENCODING_FLOAT32
    )
    requests.put(train_pb2.TrainRequest(attach=attach))
    call: Any = server._link.stub.Train(iter(requests.get, None))
    header = train_pb2.BlockHeader(steps=1, returns=train_pb2.RETURNS_NONE)
    taken = []
    try:
        next(call)
        for sequence in range(1, 6):
            for start in range(0, end, length):
                part = train_pb2.Gradients(
                    sequence=sequence,
                    offset=start,
                    data=flat[start : min(start + length, end)].tobytes(),
                    header=header if start == 0 else None,
                )
                requests.put(train_pb2.TrainRequest(gradients=part))
            time.sleep(max(wait_seconds, 0.02))
            last = train_pb2.Gradients(sequence=sequence, offset=end, data=flat[end:].tobytes(), last=True)
            begin = time.perf_counter()
            requests.put(train_pb2.TrainRequest(gradients=last))
            next(call)
            taken.append(time.perf_counter() - begin)
    except grpc.RpcError as error:
        raise translate(error, server.target) from None
    finally:
        requests.put(None)
        call.cancel()
    return statistics.median(taken[1:])


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _median_seconds(work: Callable[[], object], seconds: float, *, at_least: int = 3) -> float:
    """Of as many rounds as fit into ``seconds``."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < at_least or (time.perf_counter() < end and len(taken) < 10_000):
        taken.append(_seconds(work))
    return statistics.median(taken)
