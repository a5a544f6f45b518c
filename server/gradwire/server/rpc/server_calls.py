"""The calls about the server itself, and about who calls it."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version

from gradwire.server.durability.recovery_progress import RecoveryProgress
from gradwire.server.rpc.call import Call
from gradwire.server.rpc.calls import Calls
from gradwire.v1 import service_pb2


class ServerCalls(Calls):
    """See ``gradwire/v1/service.proto``."""

    async def WhoAmI(self, request: service_pb2.WhoAmIRequest, call: Call) -> service_pb2.WhoAmIResponse:
        who, registry = call.who, self.registry
        runs, disk = len(registry.held(who.tenant)), registry.disk_use.of(who.tenant)
        return service_pb2.WhoAmIResponse(
            tenant=who.tenant,
            role=int(who.role),  # type: ignore[arg-type]
            id=who.id,
            expires_seconds=who.until or 0.0,
            runs=who.runs,
            workers=who.workers,
            quotas=[
                service_pb2.Quota(name=name, used=used, limit=limit)
                for name, used, limit in registry.ledger.use(who.tenant, runs, disk)
            ],
        )

    async def GetServerStatus(
        self, request: service_pb2.GetServerStatusRequest, call: Call
    ) -> service_pb2.GetServerStatusResponse:
        registry, certificates = self.registry, self.certificates
        status = service_pb2.GetServerStatusResponse(
            version=_version(),
            server_instance=registry.server_instance,
            uptime_seconds=time.monotonic() - self.started,
            recovered=registry.ready,
            runs=len(registry.runs()),
            damaged_runs=registry.damaged_count,
            memory_bytes=registry.budget.used_bytes,
            memory_limit_bytes=registry.budget.limit_bytes,
            access_error="" if self.gate is None else self.gate.error,
            event_loop_lag_seconds=self.loop_lag.longest_seconds,
            audit_lines_lost=0 if self.audit is None else self.audit.lost,
        )
        if registry.stored_runs is not None:
            status.recovery.CopyFrom(_recovery(registry.stored_runs.recovery))
        if certificates is not None:
            status.certificate_expires_seconds = certificates.renew().expires.timestamp()
            status.certificate_error = certificates.error
            status.certificate_refusals = certificates.refusals
            status.unused_handshakes = self.handshakes.unused
        return status


def _recovery(progress: RecoveryProgress) -> service_pb2.Recovery:
    return service_pb2.Recovery(
        runs=progress.runs,
        total_runs=progress.total_runs,
        snapshot_bytes=progress.snapshot_bytes,
        total_snapshot_bytes=progress.total_snapshot_bytes,
        run=progress.run,
        blocks=progress.blocks,
        total_blocks=progress.total_blocks,
        seconds=progress.seconds,
        text=progress.text,
    )


def _version() -> str:
    try:
        return version("gradwire")
    except PackageNotFoundError:  # run from its sources
        return "unknown"
