"""A tiny server that wants to know who calls: it notes the token of each call, and refuses those that it does not know.

It holds one run of two float32 elements, and its optimizer is `p -= g`: what is lost or done twice shows in the values.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.errors import (
    STATUS_DETAILS_KEY,
    GradwireError,
    PermissionRevoked,
    RunNotFound,
    Unauthenticated,
    to_status,
)
from gradwire.wire.service import SERVICE_NAME

SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def refuse(context: Any, error: GradwireError) -> None:
    """Raises."""
    status = to_status(error)
    context.set_trailing_metadata(((STATUS_DETAILS_KEY, status.SerializeToString()),))
    context.abort(next(code for code in grpc.StatusCode if code.value[0] == status.code), status.message)


class Guarded:
    """Serves at ``target``; a context manager.

    Args:
        tokens: those that it knows at first.
        credentials: None: without TLS.
    """

    def __init__(self, *tokens: str, credentials: grpc.ServerCredentials | None = None, listen: str = "") -> None:
        self.known = set(tokens)
        self.denial: GradwireError | None = None
        """What who is known is refused with."""
        self.when_refused: Callable[[], object] = lambda: None
        """Called before a refusal leaves."""
        self.calls: list[tuple[str, str | None]] = []
        """Method and `authorization` of each."""
        self.run = OneRun()
        self._server = grpc.server(ThreadPoolExecutor(8), interceptors=[_Guard(self)])
        servicer = health.HealthServicer()
        servicer.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, self._server)
        service_pb2_grpc.add_OptimizerServiceServicer_to_server(self.run, self._server)
        address = listen or "127.0.0.1:0"
        if credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, credentials)
        self.target = listen or f"127.0.0.1:{port}"
        self._server.start()

    def tokens(self, method: str | None = None) -> list[str | None]:
        """Of the calls so far, in order; without ``method`` of all but health checks."""
        return [token for name, token in list(self.calls) if name == (method or name) and (method or name != "Check")]

    def __enter__(self) -> Guarded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0).wait()


class _Guard(grpc.ServerInterceptor):
    def __init__(self, guarded: Guarded) -> None:
        self._guarded = guarded

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        guarded = self._guarded
        method = details.method.rpartition("/")[2]
        sent = dict(details.invocation_metadata).get("authorization")
        guarded.calls.append((method, None if sent is None else sent.removeprefix("Bearer ")))
        if method == "Check":
            return continuation(details)
        known = sent is not None and sent.startswith("Bearer ") and sent.removeprefix("Bearer ") in guarded.known
        error = guarded.denial if known else Unauthenticated("this token is not known here")
        if error is None:
            return continuation(details)
        refusal = error

        def refused(requests: Iterator[Any], context: Any) -> Iterator[bytes]:
            guarded.when_refused()
            refuse(context, refusal)
            yield b""

        return grpc.stream_stream_rpc_method_handler(refused)  # on the wire all methods are


class OneRun(service_pb2_grpc.OptimizerServiceServicer):
    """The service, for whatever name."""

    def __init__(self) -> None:
        self.message: run_pb2.Run | None = None
        self.values = np.zeros(2, np.float32)
        self.blocks = 0
        """That were applied; the last of them has this number."""
        self.revoke: str | None = None
        """Whether a stream's token is revoked ``"before"`` its next block is applied, or ``"after"``."""
        self._lock = threading.Lock()

    # --- runs ----------------------------------------------------------------------------------------------------

    def CreateRun(self, request_iterator: Any, context: Any) -> service_pb2.CreateRunResponse:
        header = next(request_iterator).header
        self.message = run_pb2.Run(spec=header.spec, uid="uid", slots=SLOTS)
        for request in request_iterator:
            if request.HasField("slice"):
                self.values = np.frombuffer(request.slice.data, np.float32).copy()
        return service_pb2.CreateRunResponse(run=self._found(context), created=True)

    def GetRun(self, request: Any, context: Any) -> service_pb2.GetRunResponse:
        return service_pb2.GetRunResponse(run=self._found(context))

    def ListRuns(self, request: Any, context: Any) -> service_pb2.ListRunsResponse:
        if self.message is None:
            return service_pb2.ListRunsResponse()
        run = service_pb2.RunSummary(name=self.message.spec.name, step=self.blocks, elements=2)
        return service_pb2.ListRunsResponse(runs=[run])

    def DeleteRun(self, request: Any, context: Any) -> service_pb2.DeleteRunResponse:
        self._found(context)
        self.message = None
        return service_pb2.DeleteRunResponse(step=self.blocks)

    def ForkRun(self, request: Any, context: Any) -> service_pb2.ForkRunResponse:
        return service_pb2.ForkRunResponse(run=self._found(context), created=True)

    def ImportRun(self, request_iterator: Any, context: Any) -> service_pb2.ImportRunResponse:
        list(request_iterator)
        return service_pb2.ImportRunResponse(run=self._found(context), created=True)

    def ExportRun(self, request: Any, context: Any) -> Iterator[service_pb2.ExportRunResponse]:
        yield service_pb2.ExportRunResponse(header=service_pb2.ExportRunHeader(step=self.blocks, size_bytes=4))
        yield service_pb2.ExportRunResponse(data=b"file")

    def DigestRun(self, request: Any, context: Any) -> service_pb2.DigestRunResponse:
        return service_pb2.DigestRunResponse(sha256=self.values.tobytes().hex(), step=self.blocks)

    def SaveSnapshot(self, request: Any, context: Any) -> service_pb2.SaveSnapshotResponse:
        return service_pb2.SaveSnapshotResponse(snapshot=service_pb2.Snapshot(id=1, step=self.blocks))

    def ListSnapshots(self, request: Any, context: Any) -> service_pb2.ListSnapshotsResponse:
        return service_pb2.ListSnapshotsResponse(snapshots=[service_pb2.Snapshot(id=1, step=self.blocks)])

    def RollBack(self, request: Any, context: Any) -> service_pb2.RollBackResponse:
        return service_pb2.RollBackResponse(step=self.blocks, epoch=self._next_epoch())

    # --- values --------------------------------------------------------------------------------------------------

    def ReadParameters(self, request: Any, context: Any) -> Iterator[service_pb2.ReadParametersResponse]:
        yield service_pb2.ReadParametersResponse(header=service_pb2.ReadParametersHeader(step=self.blocks))
        yield service_pb2.ReadParametersResponse(slice=run_pb2.Slice(data=self.values.tobytes()))

    def ReadState(self, request: Any, context: Any) -> Iterator[service_pb2.ReadStateResponse]:
        yield service_pb2.ReadStateResponse(
            header=service_pb2.StateHeader(step=self.blocks, tensor_steps=[self.blocks], slots=SLOTS)
        )
        for slot in range(len(SLOTS)):
            part = service_pb2.SlotSlice(slot=slot, data=np.zeros(2, np.float32).tobytes())
            yield service_pb2.ReadStateResponse(slice=part)

    def WriteParameters(self, request_iterator: Any, context: Any) -> service_pb2.WriteParametersResponse:
        for request in request_iterator:
            if request.HasField("slice"):
                self.values = np.frombuffer(request.slice.data, np.float32).copy()
        return service_pb2.WriteParametersResponse(step=self.blocks, epoch=self._next_epoch())

    def WriteState(self, request_iterator: Any, context: Any) -> service_pb2.WriteStateResponse:
        list(request_iterator)
        return service_pb2.WriteStateResponse(step=self.blocks, epoch=self._next_epoch())

    # --- steps ---------------------------------------------------------------------------------------------------

    def Train(self, request_iterator: Any, context: Any) -> Iterator[train_pb2.TrainResponse]:
        next(request_iterator)
        attached = train_pb2.Attached(
            step=self.blocks,
            last_sequence=self.blocks,
            epoch=self._next_epoch(),
            supports=[train_pb2.FEATURE_SERIES],
        )
        yield train_pb2.TrainResponse(attached=attached)
        for request in request_iterator:
            gradients = request.gradients
            self._revoke_if("before", context, gradients.sequence)
            if gradients.sequence == self.blocks + 1:
                self.values = self.values - np.frombuffer(gradients.data, np.float32)
                self.blocks += 1
            self._revoke_if("after", context, gradients.sequence)
            receipt = train_pb2.Receipt(step=self.blocks, learning_rates=[1.0])
            yield train_pb2.TrainResponse(
                parameters=train_pb2.Parameters(
                    sequence=gradients.sequence, steps=1, data=self.values.tobytes(), receipt=receipt
                )
            )

    def _revoke_if(self, when: str, context: Any, sequence: int) -> None:
        if self.revoke == when:
            self.revoke = None
            details: dict[str, Any] = {"applied": True, "sequence": sequence} if when == "after" else {}
            refuse(context, PermissionRevoked("this token has been revoked", **details))

    # --- the server itself ---------------------------------------------------------------------------------------

    def WhoAmI(self, request: Any, context: Any) -> service_pb2.WhoAmIResponse:
        return service_pb2.WhoAmIResponse(
            tenant="vision",
            role=service_pb2.ROLE_TRAIN,
            id="ci",
            expires_seconds=1_800_000_000.5,
            runs=["ci-*"],
            workers=["w?"],
        )

    def GetSeries(self, request: Any, context: Any) -> service_pb2.GetSeriesResponse:
        return service_pb2.GetSeriesResponse(step=self.blocks)

    def StreamSeries(self, request: Any, context: Any) -> Iterator[service_pb2.StreamSeriesResponse]:
        yield service_pb2.StreamSeriesResponse(step=self.blocks)

    def LogScalars(self, request: Any, context: Any) -> service_pb2.LogScalarsResponse:
        return service_pb2.LogScalarsResponse(step=self.blocks)

    def ListWorkers(self, request: Any, context: Any) -> service_pb2.ListWorkersResponse:
        return service_pb2.ListWorkersResponse()

    def GetServerStatus(self, request: Any, context: Any) -> service_pb2.GetServerStatusResponse:
        return service_pb2.GetServerStatusResponse(
            version="1.2.3",
            server_instance="instance",
            uptime_seconds=61.25,
            recovered=True,
            runs=3,
            damaged_runs=1,
            memory_bytes=10,
            memory_limit_bytes=20,
            certificate_expires_seconds=1_800_000_000.0,
            access_error="line 3\nis no token",
            event_loop_lag_seconds=0.0125,
            audit_lines_lost=7,
        )

    def _found(self, context: Any) -> run_pb2.Run:
        message = self.message
        if message is None:
            refuse(context, RunNotFound("there is no run here"))
        assert message is not None
        message.step = self.blocks
        return message

    def _next_epoch(self) -> int:
        with self._lock:
            assert self.message is not None
            self.message.epoch += 1
            return self.message.epoch
