"""What the handlers of all calls share: refusals, who calls, the drain, and the first messages of streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from gradwire.server.engine.run import Run
from gradwire.server.rpc.codec import encode_run
from gradwire.server.rpc.stream_guard import StreamGuard
from gradwire.server.runs.registry import Registry
from gradwire.v1 import run_pb2, service_pb2_grpc
from gradwire.wire.errors import (
    STATUS_DETAILS_KEY,
    Draining,
    GradwireError,
    ProtocolViolation,
    to_status,
)

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


class Calls(service_pb2_grpc.OptimizerServiceServicer):
    """The state of a servicer, without its methods."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._guards: set[StreamGuard] = set()
        self._calls: set[asyncio.Task[Any]] = set()

    async def drain(self, timeout_seconds: float) -> None:
        """No new work; returns when the calls under way have ended. Streams end when what they have received whole has
        been answered."""
        self.registry.draining = True
        for guard in list(self._guards):
            guard.drain(Draining("the server is about to stop; this block was not applied"))
        if self._calls:
            await asyncio.wait(self._calls, timeout=timeout_seconds)

    def identify(self, context: Any) -> None:
        """Decides who calls, by metadata, peer and authentication: no message has been read yet, and none is where this
        raises a GradwireError. Everybody may call today."""

    def require_ready(self) -> None:
        """Raises Starting."""
        self.registry.require_ready()

    def note_call(self) -> None:
        """Counts the current task as a call under way until it ends."""
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    @contextmanager
    def guarded(self) -> Iterator[StreamGuard]:
        guard = StreamGuard(self.registry.config.stall_timeout_seconds)
        self._guards.add(guard)
        try:
            yield guard
        finally:
            self._guards.discard(guard)
            guard.close()

    async def encoded(self, run: Run) -> run_pb2.Run:
        return await run.lock.run(lambda: encode_run(run, self.registry.server_instance))


async def open_stream(context: Any) -> None:
    """Sends the headers of a stream of answers.

    gRPC would send them with the first message; were that interrupted, it would send them again with the status, which
    fails, and the peer would wait for ever.
    """
    try:
        await context.send_initial_metadata(())
    except grpc.aio.InternalError as error:  # the peer has gone already
        raise asyncio.CancelledError from error


async def first_of(requests: AsyncIterator[Any]) -> Any:
    """The header message of an upload. Raises ProtocolViolation."""
    async for request in requests:
        require(request, "header")
        return request
    raise ProtocolViolation("the stream ended before its header")


def require(request: Any, kind: str) -> None:
    """Raises ProtocolViolation unless ``request`` is a message of this kind."""
    found = None if request is grpc.aio.EOF else request.WhichOneof("message")
    if found != kind:
        raise ProtocolViolation(
            f"expected {kind!r} here, got {'the end of the stream' if found is None else repr(found)}"
        )
