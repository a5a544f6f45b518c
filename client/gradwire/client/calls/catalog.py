"""The runs of a server, by name."""

from __future__ import annotations

from dataclasses import dataclass

from gradwire.client.calls.waits import Wait, decode_wait, idle_seconds
from gradwire.client.options import durability_name
from gradwire.client.transport.link import Link
from gradwire.client.transport.retry import RetryPolicy, retrying
from gradwire.v1 import run_pb2, service_pb2
from gradwire.wire.layout import run_resource


@dataclass(frozen=True)
class RunSummary:
    """One line of `Server.list_runs`."""

    name: str
    step: int
    elements: int
    dtype: str
    attached_worker_id: str
    attached_workers: int
    """How many; of a shared run no id is said, see `Run.workers`."""
    durability: str
    """See `Receipt.durability`."""
    damage: str
    """Why the run cannot be served; empty: it is well."""
    steps_per_second: float
    """Now; 0: nothing moves, or the server is too old to say."""
    idle_seconds: float | None
    """Since a block or a round was applied; None: none has been since the start of the server, or it is too old to
    say."""
    wait: Wait | None
    """What its worker waits for, or, of a shared run, its open round; see `Run.workers` for more. None: nobody is
    there, nothing is waited for, or the server is too old to say."""


def get_run(link: Link, retry: RetryPolicy, name: str) -> run_pb2.Run:
    """A run without its values. Raises RunNotFound."""
    request = service_pb2.GetRunRequest(name=run_resource(name))
    return retrying(lambda: link.stub.GetRun(request), retry, link).run


def list_runs(link: Link) -> list[RunSummary]:
    """See `Server.list_runs`."""
    summaries: list[RunSummary] = []
    token = ""
    while True:
        request = service_pb2.ListRunsRequest(page_token=token)
        page = retrying(lambda request=request: link.stub.ListRuns(request), RetryPolicy(), link)  # type: ignore[misc]
        summaries.extend(map(_summary, page.runs))
        token = page.next_page_token
        if not token:
            return summaries


def delete_run(link: Link, name: str) -> int:
    """See `Server.delete_run`."""
    request = service_pb2.DeleteRunRequest(name=run_resource(name))
    # Not tried again: after a lost answer the second attempt would find nothing.
    return retrying(lambda: link.stub.DeleteRun(request), RetryPolicy(deadline_seconds=0), link).step


def _summary(run: service_pb2.RunSummary) -> RunSummary:
    return RunSummary(
        name=run.name.removeprefix("runs/"),
        step=run.step,
        elements=run.elements,
        dtype=run_pb2.Dtype.Name(run.dtype).removeprefix("DTYPE_").lower(),
        attached_worker_id=run.attached_worker_id,
        attached_workers=run.attached_workers,
        durability=durability_name(run.durability),
        damage=run.damage,
        steps_per_second=run.steps_per_second,
        idle_seconds=idle_seconds(run),
        wait=decode_wait(run),
    )
