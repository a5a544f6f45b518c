"""Shared runs, driven with the bare client: workers that go on from the parameters which they have been sent."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

from gradwire.v1 import run_pb2, service_pb2, train_pb2
from tests.contract.bare import TIMEOUT_SECONDS, BareClient, BareStream, group, unpack, whole

UNDERSTANDS = [train_pb2.FEATURE_SHARED_RUN]

ACCEPTED, STALE = train_pb2.Outcome.KIND_ACCEPTED, train_pb2.Outcome.KIND_STALE
REFUSED, DROPPED = train_pb2.Outcome.KIND_REFUSED, train_pb2.Outcome.KIND_DROPPED

_names = (f"shared-{number}" for number in itertools.count())


def sgd(**shapes: Sequence[int]) -> run_pb2.Group:
    made = group(**shapes)
    made.sgd.CopyFrom(run_pb2.Sgd(lr=1.0))
    return made


class Shared:
    """A shared run of one tensor ``w``, or of more."""

    def __init__(
        self, bare: BareClient, values: Sequence[float] = (0.0, 0.0), *, spec: Any = None, **options: Any
    ) -> None:
        self.bare = bare
        self.name = next(_names)
        spec = dict(spec or {})
        groups = spec.pop("groups", [sgd(w=[len(values)])])
        bare.create(self.name, groups, values, shared=run_pb2.SharedRun(**options), **spec)

    def attach(self, worker_id: str, **fields: Any) -> Worker:
        return Worker(self.bare.attach(self.name, worker_id, understands=UNDERSTANDS, **fields))

    def read(self) -> list[float]:
        return self.bare.read(self.name)[1]

    def workers(self) -> service_pb2.ListWorkersResponse:
        found: service_pb2.ListWorkersResponse = self.bare.call(
            "ListWorkers", service_pb2.ListWorkersRequest(name=f"runs/{self.name}")
        )
        return found

    def until_waiting(self, worker_id: str) -> None:
        """Returns when the worker's contribution is in the open round."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not any(worker.waiting for worker in self.workers().workers if worker.worker_id == worker_id):
            assert time.monotonic() < deadline, f"{worker_id} has no contribution in the open round"
            time.sleep(0.001)


class Worker:
    """One of a shared run: goes on from the parameters that it has been sent."""

    def __init__(self, stream: BareStream) -> None:
        self.stream = stream
        self.sequence = stream.attached.last_sequence
        self.step = stream.attached.step
        self.epoch = stream.attached.epoch
        self.params: list[float] = []

    def send(self, values: Sequence[float], *, weight: float | None = None, **header: Any) -> None:
        """A contribution, in one message."""
        self.sequence += 1
        base = {"base_step": self.step, "base_epoch": self.epoch} | header.pop("base", {})
        contribution = train_pb2.Contribution(weight=weight, **base)
        self.stream.send(whole(self.sequence, values, contribution=contribution, **header))

    def answer(self) -> train_pb2.Receipt:
        """What became of it."""
        parts = list(self.stream.answer())
        self.params = unpack(b"".join(part.data for part in parts))
        receipt = parts[-1].receipt
        self.step, self.epoch = receipt.step, receipt.contribution.epoch
        return receipt

    def leave(self) -> None:
        """Says so, and ends the stream."""
        self.stream.send(train_pb2.TrainRequest(leave=train_pb2.Leave()))
        self.stream.close()

    def step_alone(self, values: Sequence[float], **header: Any) -> train_pb2.Receipt:
        self.send(values, **header)
        return self.answer()
