"""The calls about the workers of a run. Decode, one domain call, encode."""

from __future__ import annotations

from gradwire.server.rpc.call import Call
from gradwire.server.rpc.calls import Calls
from gradwire.v1 import service_pb2


class WorkerCalls(Calls):
    """See ``gradwire/v1/service.proto``."""

    async def ListWorkers(self, request: service_pb2.ListWorkersRequest, call: Call) -> service_pb2.ListWorkersResponse:
        run = self.run_of(call, request.name, request.run_uid)
        holder = run.holder
        response = service_pb2.ListWorkersResponse()
        if holder is not None:
            response.workers.add(
                worker_id=holder.worker_id,
                attached=True,
                leased=True,
                leads=True,
                last_sequence=holder.record.last_sequence,
                last_accepted_sequence=holder.record.last_sequence,
                step=run.step,
            )
        return response
