"""The calls about the workers of a run. Decode, one domain call, encode."""

from __future__ import annotations

from gradwire.server.engine.block import Kind
from gradwire.server.engine.run import Run
from gradwire.server.rounds.report import WorkerReport, reported
from gradwire.server.rpc.activity_message import encode_wait
from gradwire.server.rpc.call import Call
from gradwire.server.rpc.calls import Calls
from gradwire.v1 import service_pb2


class WorkerCalls(Calls):
    """See ``gradwire/v1/service.proto``."""

    async def ListWorkers(self, request: service_pb2.ListWorkersRequest, call: Call) -> service_pb2.ListWorkersResponse:
        run = self.run_of(call, request.name, request.run_uid)
        answer = service_pb2.ListWorkersResponse(
            steps_per_second=run.activity.steps_per_second, idle_seconds=run.activity.idle_seconds
        )
        if run.spec.shared is None:
            answer.workers.extend(_sole(run))
            return answer
        found = reported(run)
        answer.workers.extend(map(_worker, found.workers))
        answer.waiting_for = found.waiting_for
        answer.open_seconds = found.open_seconds
        answer.round = found.round
        return answer


def _sole(run: Run) -> list[service_pb2.Worker]:
    """The worker of a run that has one at a time."""
    holder = run.holder
    if holder is None:
        return []
    last = holder.record.last_sequence
    return [
        service_pb2.Worker(
            worker_id=holder.worker_id,
            attached=True,
            leased=True,
            leads=True,
            last_sequence=last,
            last_accepted_sequence=last,
            step=run.step,
            wait=encode_wait(holder.wait()),
        )
    ]


def _worker(worker: WorkerReport) -> service_pb2.Worker:
    return service_pb2.Worker(
        worker_id=worker.worker_id,
        attached=worker.attached,
        leased=worker.leased,
        leads=worker.leads,
        aside=worker.aside,
        last_heard_seconds=worker.last_heard_seconds,
        last_sequence=worker.last_sequence,
        last_accepted_sequence=worker.last_accepted_sequence,
        step=worker.step,
        waiting=worker.waiting,
        accepted=worker.outcomes[Kind.ACCEPTED],
        stale=worker.outcomes[Kind.STALE],
        refused=worker.outcomes[Kind.REFUSED],
        dropped=worker.outcomes[Kind.DROPPED],
        share=worker.share,
        wait=encode_wait(worker.wait),
    )
