"""Who works on a run, and what it waits for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradwire.client.calls.remote_values import RemoteValues
from gradwire.client.calls.waits import Wait, decode_wait, idle_seconds
from gradwire.client.transport.retry import retrying
from gradwire.v1 import service_pb2


@dataclass(frozen=True)
class Worker:
    """One worker of a run. What it counts, it counts from the start of the server."""

    worker_id: str
    attached: bool
    """Whether it is connected now."""
    leased: bool
    """Whether it is waited for: it is connected, or has been until less than ``Shared.lease_seconds`` ago."""
    leads: bool
    """Whether it may change hyperparameters."""
    aside: bool
    """Whether it is not waited for because it has been too slow; see ``Shared.stale``."""
    last_heard_seconds: float
    """Seconds since anything came from it."""
    last_sequence: int
    """Of its last answered contribution, or block."""
    last_accepted_sequence: int
    step: int
    """Of the newest parameters that it has been sent."""
    waiting: bool
    """Whether its contribution waits in the open round."""
    accepted: int
    """Contributions by outcome; see `Receipt.outcome`."""
    stale: int
    refused: int
    dropped: int
    share: float
    """Its part of the total weight of all rounds since the server knows it."""
    wait: Wait | None
    """What it waits for, or the server for it. None: it is not connected, or the server is too old to say."""


@dataclass(frozen=True)
class Workers:
    """What `Run.workers` answers; iterates over the workers."""

    workers: tuple[Worker, ...]
    """Those that are there, and the last ones that were, by id."""
    waiting_for: str
    """Why the open round has not closed, in words. Empty: none is open."""
    open_seconds: float
    """For how long it has been open."""
    round: int
    """Its number, or that of the next one."""
    steps_per_second: float
    """Now; 0: nothing moves, or the server is too old to say."""
    idle_seconds: float | None
    """Since a block or a round was applied; None: none has been since the start of the server, or it is too old to
    say."""

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.workers)

    def __len__(self) -> int:
        return len(self.workers)


def list_workers(values: RemoteValues) -> Workers:
    """See `Run.workers`."""
    request = service_pb2.ListWorkersRequest(name=values.name, run_uid=values.uid)
    found = retrying(lambda: values.link.stub.ListWorkers(request), values.retry, values.link)
    return Workers(
        tuple(map(_worker, found.workers)),
        found.waiting_for,
        found.open_seconds,
        found.round,
        found.steps_per_second,
        idle_seconds(found),
    )


def _worker(message: service_pb2.Worker) -> Worker:
    return Worker(
        worker_id=message.worker_id,
        attached=message.attached,
        leased=message.leased,
        leads=message.leads,
        aside=message.aside,
        last_heard_seconds=message.last_heard_seconds,
        last_sequence=message.last_sequence,
        last_accepted_sequence=message.last_accepted_sequence,
        step=message.step,
        waiting=message.waiting,
        accepted=message.accepted,
        stale=message.stale,
        refused=message.refused,
        dropped=message.dropped,
        share=message.share,
        wait=decode_wait(message),
    )
