"""gRPC's health service, for everybody."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from gradwire.server.metrics.calls import CallCounters
from gradwire.server.rpc.handshakes import Handshakes


class Health(health.aio.HealthServicer):  # type: ignore[misc]
    """Says how the server is.

    Args:
        strangers: whether it is asked by people whom nobody knows: they may ask, and not hold a stream to be told.
        calls: where calls are counted.
    """

    def __init__(self, handshakes: Handshakes, calls: CallCounters, *, strangers: bool) -> None:
        super().__init__()
        self._handshakes = handshakes
        self._strangers = strangers
        service = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        self._check = calls.method(service, "Check", client_streams=False, server_streams=False)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        self._handshakes.called(context.peer())
        with self._check.counting() as ending:
            try:
                answer = await super().Check(request, context)
            except grpc.aio.AbortError:
                ending.code = "NOT_FOUND"
                raise
            ending.code = "OK"
            return answer

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        self._handshakes.called(context.peer())
        await self._require_known(context, "Watch")
        await super().Watch(request, context)

    async def List(self, request: Any, context: Any) -> Any:
        self._handshakes.called(context.peer())
        await self._require_known(context, "List")
        return await super().List(request, context)

    async def _require_known(self, context: Any, method: str) -> None:
        if self._strangers:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"this server answers Check, not {method}")
