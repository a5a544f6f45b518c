"""How gRPC reaches the handlers: every method takes a stream of bytes, under one wrapper.

gRPC reads the request of a unary call before it asks anybody, up to 16 MiB of it. A stream looks the same on the wire
and is read when the handler says so: who calls is decided before that, and a stranger keeps what he would send.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.code_pb2 import Code

from gradwire.server.access.pacing import Pace
from gradwire.server.metrics.calls import Ending
from gradwire.server.metrics.traffic import ByteCount
from gradwire.server.rpc.call import Call, action_of
from gradwire.server.rpc.calls import Calls, abort
from gradwire.server.rpc.stream_guard import StreamGuard
from gradwire.v1 import service_pb2
from gradwire.wire.errors import GradwireError, InternalError, ProtocolViolation
from gradwire.wire.service import SERVICE_NAME

log = logging.getLogger(__name__)

BYTES = {"Train"}
"""Methods that read and write serialized messages by themselves: nearly all of these is data, which protobuf copies."""


WHILE_STARTING = {"GetServerStatus"}
"""Methods that are answered before the stored runs are back."""


def add_to_server(servicer: Calls, server: grpc.aio.Server) -> None:
    """Registers all methods of the contract."""
    service = service_pb2.DESCRIPTOR.services_by_name[SERVICE_NAME.rpartition(".")[2]]
    handlers = {method.name: _handler(servicer, method) for method in service.methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))


def _handler(servicer: Calls, method: Any) -> Any:
    register: Any = grpc.stream_stream_rpc_method_handler
    if not method.server_streaming:
        register = grpc.stream_unary_rpc_method_handler  # its answer and its status travel together
    serializer = None if method.name in BYTES else _serialized
    return register(_wrapped(servicer, method), response_serializer=serializer)


def _serialized(response: Message | bytes) -> bytes:
    """Of answers that are large, or made of what is encoded already, handlers return the bytes."""
    return response if isinstance(response, bytes) else response.SerializeToString()


def _wrapped(servicer: Calls, method: Any) -> Callable[[Any, Any], Awaitable[Any]]:
    """Decides who calls, reads, and turns the exceptions of the handler into statuses."""
    name: str = method.name
    raw, streams = name in BYTES, method.client_streaming
    request = GetMessageClass(method.input_type)
    call = getattr(servicer, name)
    counters = servicer.registry.counters
    counted = counters.calls.method(
        SERVICE_NAME, name, client_streams=method.client_streaming, server_streams=method.server_streaming
    )

    async def count(stream: Any, context: Any) -> Any:
        with counted.counting() as ending:
            return await handle(stream, context, ending)

    async def handle(stream: Any, context: Any, ending: Ending) -> Any:
        caller = None
        try:
            caller = Call(context, servicer.identify(context), action_of(name), servicer.gate)
            caller.who.require(name)
            with servicer.reading(caller.who) as guard:
                if raw:
                    requests = stream
                elif streams:
                    requests = _messages(guard, context, request, servicer.pace_of(caller), counters.traffic.uploads)
                else:
                    requests = await _message(guard, context, request)
                servicer.require_still(caller.who)
                servicer.note_call()
                if name not in WHILE_STARTING:
                    servicer.require_ready()
                answer = await call(requests, caller)
            servicer.note(context, caller, name)
            ending.code = "OK"
            return answer
        except GradwireError as error:
            refusal = error if caller is None else caller.refusal(error)
        except MemoryError:
            log.exception("out of memory in %s", name)
            refusal = InternalError("the server ran out of memory", applied=None)
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            ending.code = "UNKNOWN"
            raise
        except asyncio.CancelledError:  # the caller has gone
            servicer.note(context, caller, name, "CANCELLED")
            raise
        except Exception:
            log.exception("unexpected error in %s", name)
            refusal = InternalError(f"unexpected error in {name}; the server's log says more", applied=None)
        finally:
            if caller is not None:
                caller.end()
        ending.code = Code.Name(refusal.code)
        counters.refused(refusal)
        servicer.note(context, caller, name, refusal.reason)
        await abort(context, refusal)
        return None  # gRPC does not look at it after an abort

    return count


async def _message(guard: StreamGuard, context: Any, request: type[Message]) -> Message:
    """The only request of a call. Raises ProtocolViolation."""
    serialized = await guard.request(context.read)
    if serialized is grpc.aio.EOF:
        raise ProtocolViolation("the call ended before its request")
    return _decoded(serialized, request)


async def _messages(
    guard: StreamGuard, context: Any, request: type[Message], pace: Pace | None, count: ByteCount
) -> AsyncIterator[Message]:
    """The requests of a call, one after another, as fast as ``pace`` has them. Raises ProtocolViolation."""
    while (serialized := await guard.request(context.read)) is not grpc.aio.EOF:
        count.bytes += len(serialized)
        yield _decoded(serialized, request)
        if pace is not None:
            pace.use(0, len(serialized))
            await guard.keep(pace)


def _decoded(serialized: bytes, request: type[Message]) -> Message:
    try:
        return request.FromString(serialized)
    except DecodeError as error:
        raise ProtocolViolation(f"a message that is no {request.DESCRIPTOR.name}: {error}") from None
