"""The calls about whole runs: snapshots, forks, files, hashes. Decode, one domain call, encode."""

from __future__ import annotations

from functools import partial
from typing import Any

from gradwire.server.access.identity import split, tenant_of
from gradwire.server.engine.run import Run
from gradwire.server.engine.threads import in_thread
from gradwire.server.metrics.counters import ASKED
from gradwire.server.rpc.call import Call
from gradwire.server.rpc.calls import Calls, first_of, open_stream, require
from gradwire.server.rpc.codec import decode_durability
from gradwire.server.rpc.hyperparameters import decode_group, decode_numbers
from gradwire.server.runs import files, operations
from gradwire.server.store.base import SnapshotInfo
from gradwire.v1 import run_pb2, service_pb2


class SnapshotCalls(Calls):
    """See ``gradwire/v1/service.proto``."""

    async def SaveSnapshot(
        self, request: service_pb2.SaveSnapshotRequest, call: Call
    ) -> service_pb2.SaveSnapshotResponse:
        self.registry.require_open()
        run = self.run_of(call, request.name, request.run_uid)
        info = await operations.save(self.registry, run, request.label)
        return service_pb2.SaveSnapshotResponse(snapshot=_snapshot(run, info))

    async def ListSnapshots(
        self, request: service_pb2.ListSnapshotsRequest, call: Call
    ) -> service_pb2.ListSnapshotsResponse:
        run = self.run_of(call, request.name, request.run_uid)
        found = operations.listed(self.registry, run)
        return service_pb2.ListSnapshotsResponse(snapshots=[_snapshot(run, info) for info in found])

    async def ForkRun(self, request: service_pb2.ForkRunRequest, call: Call) -> bytes:
        run, created = await operations.fork(
            self.registry,
            self.run_of(call, request.name, request.run_uid),
            request.snapshot_id,
            call.new_run(request.new_name),
            request.request_id,
            replaces=request.replace,
            groups=[decode_group(index, group) for index, group in enumerate(request.groups)],
            overrides=decode_numbers(request.overrides),
            durability=decode_durability(request.durability),
        )
        return await self.with_run(call, run, service_pb2.ForkRunResponse(created=created))

    async def RollBack(self, request: service_pb2.RollBackRequest, call: Call) -> service_pb2.RollBackResponse:
        self.registry.require_open()
        run = self.run_of(call, request.name, request.run_uid)
        self.require_may_change(call, run, request.worker_id)
        step, epoch = await operations.roll_back(self.registry, run, request.snapshot_id)
        self.registry.counters.rolled_back[ASKED] += 1
        return service_pb2.RollBackResponse(step=step, epoch=epoch)

    async def DigestRun(self, request: service_pb2.DigestRunRequest, call: Call) -> service_pb2.DigestRunResponse:
        run = self.run_of(call, request.name, request.run_uid)
        sha256, step = await operations.digest(self.registry, run)
        return service_pb2.DigestRunResponse(sha256=sha256, step=step)

    async def ExportRun(self, request: service_pb2.ExportRunRequest, call: Call) -> None:
        await open_stream(call.context)
        run = self.run_of(call, request.name, request.run_uid)
        with self.guarded(call) as guard:
            async with operations.source(self.registry, run, request.snapshot_id) as snapshot:
                export = partial(files.export, run, snapshot, request.weights_only, split(run.spec.name)[1])
                file = await in_thread(self.registry.executor, export)
                header = service_pb2.ExportRunHeader(step=file.step, size_bytes=file.size_bytes)
                await self.write(call, guard, service_pb2.ExportRunResponse(header=header))
                pieces = file.pieces()
                while (data := await in_thread(self.registry.executor, lambda: next(pieces, None))) is not None:
                    await self.write(call, guard, service_pb2.ExportRunResponse(data=data))

    async def ImportRun(self, requests: Any, call: Call) -> bytes:
        self.registry.require_open()
        header: service_pb2.ImportRunHeader = (await first_of(requests)).header
        name = call.new_run(header.name)
        with files.importing(self.registry, tenant_of(name)) as upload:
            async for request in requests:
                require(request, "data")
                upload.add(request.data)
            run, created = await upload.finish(
                name,
                header.request_id,
                replaces=header.replace,
                weights_only=header.weights_only,
                groups=[decode_group(index, group) for index, group in enumerate(header.groups)],
                durability=decode_durability(header.durability),
            )
        return await self.with_run(call, run, service_pb2.ImportRunResponse(created=created))


def _snapshot(run: Run, info: SnapshotInfo) -> service_pb2.Snapshot:
    return service_pb2.Snapshot(
        id=info.id,
        step=info.step,
        created_seconds=info.created,
        size_bytes=info.size_bytes,
        label=info.label,
        sha256=info.sha256,
        durability=run_pb2.DURABILITY_MEMORY if run.storage is None else run_pb2.DURABILITY_SNAPSHOT,
    )
