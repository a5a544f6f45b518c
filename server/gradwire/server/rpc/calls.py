"""What the handlers of all calls share: refusals, who calls, the drain, and the first messages of streams."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message

from gradwire.server.access.audit import AuditLog
from gradwire.server.access.gate import LOOK_SECONDS, Gate
from gradwire.server.access.identity import Identity
from gradwire.server.access.pacing import Pace
from gradwire.server.engine.periodic import again_and_again
from gradwire.server.engine.run import Run
from gradwire.server.engine.threads import unless_short
from gradwire.server.rounds.rounds import require_leader
from gradwire.server.rpc.call import Call, action_of
from gradwire.server.rpc.handshakes import Handshakes
from gradwire.server.rpc.identify import identify
from gradwire.server.rpc.lanes import Lanes
from gradwire.server.rpc.loop_lag import LoopLag
from gradwire.server.rpc.run_message import report
from gradwire.server.rpc.stream_guard import StreamGuard
from gradwire.server.runs.registry import Registry
from gradwire.wire.envelope import field, length_delimited
from gradwire.wire.errors import (
    STATUS_DETAILS_KEY,
    Draining,
    GradwireError,
    PermissionRevoked,
    ProtocolViolation,
    to_status,
)

if TYPE_CHECKING:  # needs a library that a server without TLS does without
    from gradwire.server.access.certificates import RenewedCertificates

log = logging.getLogger(__name__)

_CODES = {code.value[0]: code for code in grpc.StatusCode}


_ABORT_SECONDS = 1.0

_LAST_WORDS_SECONDS = 5.0
"""What a stream whose caller has been revoked gets to write what it still owes."""

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


class Calls:
    """The state of a servicer, without its methods.

    Args:
        gate: asks who calls; None: nobody is asked.
        audit: is told of every call; None: nobody is.
        certificates: the server's own; None: it speaks no TLS.
    """

    def __init__(
        self,
        registry: Registry,
        gate: Gate | None = None,
        audit: AuditLog | None = None,
        certificates: RenewedCertificates | None = None,
    ) -> None:
        self.registry = registry
        self.gate = gate
        self.audit = audit
        self.certificates = certificates
        self.loop_lag = LoopLag()
        self.handshakes = Handshakes()
        self.lanes = Lanes()
        self.started = time.monotonic()
        self._guards: dict[StreamGuard, Identity] = {}
        self._requests: dict[StreamGuard, Identity] = {}
        """Of calls that still wait for requests. A drain lets these come."""
        self._calls: set[asyncio.Task[Any]] = set()

    async def drain(self, timeout_seconds: float) -> None:
        """No new work; returns when the calls under way have ended. Streams end when what they have received whole has
        been answered."""
        self.registry.draining = True
        for run in self.registry.runs():
            if run.shared_workers is not None:
                run.shared_workers.freeze()
        for guard in list(self._guards):
            guard.drain(Draining("the server is about to stop; this block was not applied"))
        if self._calls:
            await asyncio.wait(self._calls, timeout=timeout_seconds)

    def identify(self, context: Any) -> Identity:
        """Decides who calls, by metadata and authentication: no message has been read yet, and none is where this
        raises Unauthenticated."""
        self.handshakes.called(context.peer())
        return identify(context, self.gate)

    async def watch_access(self) -> None:
        """Looks at the access file again and again, and ends the streams of those who have been revoked or whose time
        is over, as a drain does: what has arrived whole is committed and answered. Until it is cancelled."""
        gate = self.gate
        if gate is None:
            return

        async def look() -> None:
            await asyncio.to_thread(gate.look)  # no thread of those that tenants can keep busy
            self._end_those_who_are_over(gate)

        await again_and_again(look, lambda: LOOK_SECONDS, log, "the access file cannot be looked at")

    def _end_those_who_are_over(self, gate: Gate) -> None:
        loop = asyncio.get_running_loop()
        for guard, who in [*self._guards.items(), *self._requests.items()]:
            if not guard.ending and (why := gate.over(who)):
                guard.drain(PermissionRevoked(f"{why}; nothing more is taken"))
                loop.call_later(_LAST_WORDS_SECONDS, guard.interrupt, PermissionRevoked(why, applied=None))

    def require_still(self, who: Identity) -> None:
        """Raises PermissionRevoked where what a call came with does not hold any more: it may have waited long with its
        request."""
        if self.gate is not None and (why := self.gate.over(who)):
            raise PermissionRevoked(why)

    def run_of(self, call: Call, name: str, uid: str = "") -> Run:
        """The run that a caller means. Raises RunNotFound, RunDamaged, PermissionDenied."""
        run = self.registry.get(call.run(name), uid)
        call.use(run)
        return run

    def require_may_change(self, call: Call, run: Run, worker_id: str) -> None:
        """Raises LeaderBusy, PermissionDenied for who would change a shared run for all in a worker's name; without one
        an operator does, whose token is for no workers in particular."""
        if run.spec.shared is not None and (worker_id or call.who.workers):
            call.who.require_worker(worker_id)
            require_leader(run, worker_id)

    def note(self, context: Any, call: Call | None, method: str, reason: str = "") -> None:
        """For the audit log, where there is one. ``call``: None: nobody knows who calls ``method``."""
        if self.audit is None:
            return
        if call is None:
            self.audit.note(None, context.peer(), action_of(method), "", reason)
        else:
            self.audit.note(call.who, context.peer(), call.action, call.resource, reason)

    def pace_of(self, call: Call) -> Pace | None:
        """How fast the caller's tenant may go; None: nothing need be counted."""
        return self.registry.ledger.pace_of(call.who.tenant)

    async def write(self, call: Call, guard: StreamGuard, message: Message) -> None:
        """Writes a message of a download, when the caller's tenant may have it."""
        pace = self.pace_of(call)
        if pace is not None:
            await guard.keep(pace)
            pace.use(0, message.ByteSize())
        self.registry.counters.traffic.downloads.bytes += message.ByteSize()
        await guard.write(call.context.write, message)

    def require_ready(self) -> None:
        """Raises Starting."""
        self.registry.require_ready()

    def note_call(self) -> None:
        """Counts the current task as a call under way until it ends."""
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def reading(self, who: Identity) -> AbstractContextManager[StreamGuard]:
        """Reads the requests of a call: who is revoked meanwhile sends none any more."""
        return self._guard(self._requests, who)

    def guarded(self, call: Call) -> AbstractContextManager[StreamGuard]:
        """For a stream of answers, which ends when the server drains, too. Raises PermissionRevoked."""
        self.require_still(call.who)  # from here on `watch_access` sees to it
        return self._guard(self._guards, call.who)

    @contextmanager
    def _guard(self, among: dict[StreamGuard, Identity], who: Identity) -> Iterator[StreamGuard]:
        guard = StreamGuard(self.registry.config.stall_timeout_seconds)
        among[guard] = who
        try:
            yield guard
        finally:
            del among[guard]
            guard.close()

    async def with_run(self, call: Call, run: Run, response: Any) -> bytes:
        """A response, serialized, with ``run`` in its field of that name."""
        name = call.who.outside(run.spec.name)
        found = await run.lock.run(lambda: report(run, name, self.registry.server_instance))
        serialized = await unless_short(self.registry.executor, found.serialize, found.work)
        key: bytes = field(response.RUN_FIELD_NUMBER)
        return b"".join((response.SerializeToString(), length_delimited(key, serialized)))


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
