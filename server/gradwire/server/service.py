"""The gRPC servicer: decode, one domain call, encode. Nothing else."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc

from gradwire.server.codec import (
    decode_gradients,
    decode_request,
    decode_spec,
    durability_of,
    encode_reply,
    encode_run,
    encodings_of,
    placements,
)
from gradwire.server.exclusive import in_thread
from gradwire.server.guard import StreamGuard
from gradwire.server.keeper import DamagedRun
from gradwire.server.registry import Registry
from gradwire.server.run import Run
from gradwire.server.session import Session
from gradwire.server.transfer import (
    check_state,
    parameters_of,
    put_parameters,
    put_state,
    slots_of,
    snapshot,
    upload_parameters,
    upload_state,
)
from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.encoding import dtype_of, encode, wire_dtype
from gradwire.wire.envelope import Opened
from gradwire.wire.errors import (
    STATUS_DETAILS_KEY,
    Draining,
    GradwireError,
    InternalError,
    ProtocolViolation,
    to_status,
)
from gradwire.wire.service import SERVICE_NAME

log = logging.getLogger(__name__)
T = TypeVar("T")

_CODES = {code.value[0]: code for code in grpc.StatusCode}


_ABORT_SECONDS = 1.0

_aborts: set[asyncio.Task[None]] = set()


async def abort(context: Any, error: GradwireError) -> None:
    """Ends a call with the status of the error table; the handler has nothing to do after it but to return.

    gRPC sends a status after all messages before it. A peer that does not read would hold the handler here for good,
    so it is left after a second; the status waits in gRPC, with at most one message, until the peer reads or is gone.
    """
    status = to_status(error)
    metadata = ((STATUS_DETAILS_KEY, status.SerializeToString()),)
    sending = asyncio.ensure_future(context.abort(_CODES[status.code], status.message, metadata))
    _aborts.add(sending)  # the event loop itself keeps only weak references
    sending.add_done_callback(_aborted)
    await asyncio.wait({sending}, timeout=_ABORT_SECONDS)


def _aborted(sending: asyncio.Task[None]) -> None:
    _aborts.discard(sending)
    if not sending.cancelled():
        sending.exception()  # always AbortError, or the peer was gone: gRPC knows


def refusing(method: Callable[[Any, Any, Any], Awaitable[T]]) -> Callable[[Any, Any, Any], Awaitable[T]]:
    """Turns the exceptions of a handler into statuses."""

    @functools.wraps(method)
    async def wrapper(self: Any, request: Any, context: Any) -> T:
        self.note_call()
        try:
            self.require_ready()
            return await method(self, request, context)
        except GradwireError as error:
            refusal = error
        except MemoryError:
            log.exception("out of memory in %s", method.__name__)
            refusal = InternalError("the server ran out of memory", applied=None)
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except Exception:
            log.exception("unexpected error in %s", method.__name__)
            refusal = InternalError(f"unexpected error in {method.__name__}; the server's log says more", applied=None)
        await abort(context, refusal)
        return None  # type: ignore[return-value]  # gRPC does not look at it after an abort

    return wrapper


class OptimizerServicer(service_pb2_grpc.OptimizerServiceServicer):
    """See ``gradwire/v1/service.proto``.

    Server streams are coroutines that write, which the generated types, made for generators, do not know.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._guards: set[StreamGuard] = set()
        self._calls: set[asyncio.Task[Any]] = set()

    async def drain(self, timeout_seconds: float) -> None:
        """No new work; returns when the calls under way have ended. Streams end when what they have received whole has
        been answered."""
        self._registry.draining = True
        for guard in list(self._guards):
            guard.drain(Draining("the server is about to stop; this block was not applied"))
        if self._calls:
            await asyncio.wait(self._calls, timeout=timeout_seconds)

    def require_ready(self) -> None:
        """Raises Starting."""
        self._registry.require_ready()

    def note_call(self) -> None:
        """Counts the current task as a call under way until it ends."""
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    @contextmanager
    def _guarded(self) -> Iterator[StreamGuard]:
        guard = StreamGuard(self._registry.config.stall_timeout_seconds)
        self._guards.add(guard)
        try:
            yield guard
        finally:
            self._guards.discard(guard)
            guard.close()

    async def _encode(self, run: Run) -> run_pb2.Run:
        return await run.exclusive.run(lambda: encode_run(run, self._registry.server_instance))

    @refusing
    async def CreateRun(self, requests: Any, context: Any) -> service_pb2.CreateRunResponse:
        first = await _first(requests)
        header: service_pb2.CreateRunHeader = first.header
        spec = decode_spec(header.spec)
        existing = self._registry.existing(spec.name, header.request_id)
        if existing is not None:
            return service_pb2.CreateRunResponse(run=await self._encode(existing), created=False)
        wire = wire_dtype(header.encoding, spec.dtype)
        creation = self._registry.begin_creation(spec, header.request_id, header.replace, wire)
        try:
            if header.HasField("state"):
                creation.begin_with(header.state.slots, header.state.step, header.state.tensor_steps)
            await self._registry.prepare(spec)
            async for request in requests:
                if request.WhichOneof("message") == "slot_slice":
                    part = request.slot_slice
                    creation.add_slot(part.slot, part.offset, part.data)
                    continue
                _require(request, "slice")
                creation.upload.add(0, request.slice.offset, request.slice.data)
            run = await self._registry.finish_creation(creation)
        finally:
            creation.abandon()
        return service_pb2.CreateRunResponse(run=await self._encode(run), created=run is creation.run)

    @refusing
    async def GetRun(self, request: service_pb2.GetRunRequest, context: Any) -> service_pb2.GetRunResponse:
        run = self._registry.get(request.name)
        return service_pb2.GetRunResponse(run=await self._encode(run))

    @refusing
    async def ListRuns(self, request: service_pb2.ListRunsRequest, context: Any) -> service_pb2.ListRunsResponse:
        runs, token = self._registry.page(request.page_token, request.page_size)
        return service_pb2.ListRunsResponse(runs=[_summary(run) for run in runs], next_page_token=token)

    @refusing
    async def DeleteRun(self, request: service_pb2.DeleteRunRequest, context: Any) -> service_pb2.DeleteRunResponse:
        return service_pb2.DeleteRunResponse(step=await self._registry.delete(request.name))

    @refusing
    async def Train(self, requests: Any, context: Any) -> None:  # type: ignore[override]
        """Reads and writes serialized messages; see `add_to_server`."""
        await _open(context)
        with self._guarded() as guard:
            self._registry.require_open()
            first = await guard.read(context.read)
            attach = _train_request(first, "attach").message.attach
            run = self._registry.get(attach.run, attach.run_uid)
            decoder, encoder = await in_thread(self._registry.executor, lambda: encodings_of(attach, run))
            session = await Session.attach(
                run,
                attach.worker_id,
                attach.takeover,
                guard.interrupt,
                decoder=decoder,
                encoder=encoder,
                max_result_bytes=self._registry.config.max_result,
                executor=self._registry.executor,
            )
            try:
                await guard.write(context.write, self._attached(session))
                while (request := await guard.read(context.read)) is not grpc.aio.EOF:
                    message, data = _train_request(request, "gradients")
                    async for reply in session.receive(decode_gradients(message.gradients, data)):
                        for response in encode_reply(reply, encoder):
                            await guard.write(context.write, response)
            except GradwireError as error:
                if error.applied is None:
                    error.applied = session.answering
                raise
            finally:
                await asyncio.shield(session.close())

    def _attached(self, session: Session) -> bytes:
        response = train_pb2.TrainResponse(
            attached=train_pb2.Attached(
                step=session.holder.step,
                last_sequence=session.holder.record.last_sequence,
                epoch=session.holder.epoch,
                server_instance=self._registry.server_instance,
                placements=placements(session.run),
                run_uid=session.run.uid,
            )
        )
        return response.SerializeToString()

    @refusing
    async def ReadParameters(self, request: service_pb2.ReadParametersRequest, context: Any) -> None:  # type: ignore[override]
        await _open(context)
        run = self._registry.get(request.name, request.run_uid)
        wire = wire_dtype(request.encoding, run.spec.dtype)
        with self._guarded() as guard:
            async with snapshot(run, parameters_of, 1) as copy:
                header = service_pb2.ReadParametersHeader(step=copy.step, epoch=copy.epoch)
                await guard.write(context.write, service_pb2.ReadParametersResponse(header=header))
                for _, offset, values in copy.slices(wire.itemsize):
                    part = run_pb2.Slice(offset=offset, data=encode(values, wire))
                    await guard.write(context.write, service_pb2.ReadParametersResponse(slice=part))

    @refusing
    async def ReadState(self, request: service_pb2.ReadStateRequest, context: Any) -> None:  # type: ignore[override]
        await _open(context)
        run = self._registry.get(request.name, request.run_uid)
        with self._guarded() as guard:
            async with snapshot(run, slots_of, len(run.spec.slots)) as copy:
                header = service_pb2.StateHeader(step=copy.step, tensor_steps=copy.tensor_steps, slots=run.spec.slots)
                await guard.write(context.write, service_pb2.ReadStateResponse(header=header))
                for slot, offset, values in copy.slices(run.spec.dtype.itemsize):
                    part = service_pb2.SlotSlice(slot=slot, offset=offset, data=encode(values, run.spec.dtype))
                    await guard.write(context.write, service_pb2.ReadStateResponse(slice=part))

    @refusing
    async def WriteParameters(self, requests: Any, context: Any) -> service_pb2.WriteParametersResponse:
        self._registry.require_open()
        header: service_pb2.WriteParametersHeader = (await _first(requests)).header
        run = self._registry.get(header.name, header.run_uid)
        with upload_parameters(run, wire_dtype(header.encoding, run.spec.dtype)) as upload:
            async for request in requests:
                _require(request, "slice")
                upload.add(0, request.slice.offset, request.slice.data)
            step, epoch = await put_parameters(run, upload, partial=header.partial)
        return service_pb2.WriteParametersResponse(step=step, epoch=epoch)

    @refusing
    async def WriteState(self, requests: Any, context: Any) -> service_pb2.WriteStateResponse:
        self._registry.require_open()
        header: service_pb2.WriteStateHeader = (await _first(requests)).header
        run = self._registry.get(header.name, header.run_uid)
        state = header.state
        tensor_steps = check_state(run, state.slots, state.step, state.tensor_steps)
        with upload_state(run) as upload:
            async for request in requests:
                _require(request, "slice")
                upload.add(request.slice.slot, request.slice.offset, request.slice.data)
            step, epoch = await put_state(run, upload, state.slots, state.step, tensor_steps)
        return service_pb2.WriteStateResponse(step=step, epoch=epoch)


def add_to_server(servicer: OptimizerServicer, server: grpc.aio.Server) -> None:
    """As the generated function, but that Train's messages are left as bytes."""
    train: Any = grpc.stream_stream_rpc_method_handler(servicer.Train)
    # Of two handlers for a method the first that was added is asked.
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, {"Train": train}),))
    service_pb2_grpc.add_OptimizerServiceServicer_to_server(servicer, server)


def _summary(run: Run | DamagedRun) -> service_pb2.RunSummary:
    if isinstance(run, DamagedRun):
        return service_pb2.RunSummary(name=run.name, damage=run.why)
    return service_pb2.RunSummary(
        name=run.spec.name,
        step=run.step,
        elements=run.spec.layout.elements,
        dtype=dtype_of(run.spec.dtype),
        attached_worker_id=run.holder.worker_id if run.holder else "",
        durability=durability_of(run.spec),
    )


async def _open(context: Any) -> None:
    """Sends the headers of a stream of answers.

    gRPC would send them with the first message; were that interrupted, it would send them again with the status, which
    fails, and the peer would wait for ever.
    """
    try:
        await context.send_initial_metadata(())
    except grpc.aio.InternalError as error:  # the peer has gone already
        raise asyncio.CancelledError from error


async def _first(requests: AsyncIterator[Any]) -> Any:
    """The header message of an upload. Raises ProtocolViolation."""
    async for request in requests:
        _require(request, "header")
        return request
    raise ProtocolViolation("the stream ended before its header")


def _train_request(serialized: Any, kind: str) -> Opened[train_pb2.TrainRequest]:
    """A message of a Train stream. Raises ProtocolViolation unless it is of this kind."""
    if serialized is grpc.aio.EOF:
        _require(serialized, kind)
    opened = decode_request(serialized)
    _require(opened.message, kind)
    return opened


def _require(request: Any, kind: str) -> None:
    """Raises ProtocolViolation unless ``request`` is a message of this kind."""
    found = None if request is grpc.aio.EOF else request.WhichOneof("message")
    if found != kind:
        raise ProtocolViolation(
            f"expected {kind!r} here, got {'the end of the stream' if found is None else repr(found)}"
        )
