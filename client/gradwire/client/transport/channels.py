"""Channels to a server: made, and waited for."""

from __future__ import annotations

import time
from enum import Enum, auto
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradwire.client.errors import ConnectionLost
from gradwire.client.transport.call_threads import in_own_thread
from gradwire.client.transport.silence import why_nobody_answers
from gradwire.wire.hosts import is_local
from gradwire.wire.service import MESSAGE_OPTIONS, SERVICE_NAME, local_options
from gradwire.wire.tls import TLS, tls_options
from gradwire.wire.tls_handshake import checked, tls_fault

CONNECT_TIMEOUT_SECONDS = 15.0
PROBE_TIMEOUT_SECONDS = 5.0
"""How long somebody who listens may think about it; where nobody does, that is known at once."""

_ATTEMPT_SECONDS = 5.0
_SHORTEST_ATTEMPT_SECONDS = 0.1
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 0.5

_CHANNEL_OPTIONS = [
    *MESSAGE_OPTIONS,
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # what really ends a dead connection; a minute by default
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A connection of our own: two clients in a process do not share one's backoff.
    ("grpc.use_local_subchannel_pool", 1),
]

_WITHOUT_A_LINK = [
    # gRPC takes a loopback for a long fat link, and keeps up to 40 MiB of an answer that comes faster than it is read.
    # So much on its way is nearly enough here, and 100 MB/s through a tunnel with a round trip of 20 ms.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 * 2**20),
]


def channel_to(target: str, tls: TLS | None = None) -> grpc.Channel:
    """A channel with a connection of its own. Raises OSError, ValueError for files of ``tls``."""
    window = _WITHOUT_A_LINK if is_local(target) else []
    options = [*_CHANNEL_OPTIONS, *window, *local_options(target)]
    if tls is None:
        return grpc.insecure_channel(target, options)
    credentials = grpc.ssl_channel_credentials(*checked(tls))
    return grpc.secure_channel(target, credentials, [*options, *tls_options(tls)])


class _Found(Enum):
    """What is at a target."""

    SERVING = auto()
    STARTING = auto()
    """Or about to stop."""
    NOTHING = auto()
    SILENCE = auto()
    """There has not been an answer yet."""
    ANOTHER = auto()
    """A gRPC server, but not ours."""


def answers(target: str, tls: TLS | None = None) -> bool:
    """Whether a gradwire server, SERVING or starting, is at ``target``."""
    with channel_to(target, tls) as channel:
        return in_own_thread(lambda: _look(channel, PROBE_TIMEOUT_SECONDS)) in (_Found.SERVING, _Found.STARTING)


def serving_channel(target: str, timeout_seconds: float, tls: TLS | None = None) -> grpc.Channel:
    """A channel to ``target``, once the server there is SERVING. Nobody need listen there yet, nor need its name be
    known. Raises ConnectionLost after ``timeout_seconds``, or at once where another server answers, or TLS stands in
    between; OSError and ValueError for files of ``tls``."""
    deadline = time.monotonic() + timeout_seconds
    pause_seconds = _SHORTEST_PAUSE_SECONDS
    while True:
        channel = channel_to(target, tls)
        try:
            found = _wait_for_answer(channel, deadline)
        except BaseException:
            channel.close()
            raise
        if found is _Found.SERVING:
            return channel
        # A channel of gRPC's tries again later and later, up to two minutes for a name. A new one does so now.
        channel.close()
        left_seconds = deadline - time.monotonic()
        fault = in_own_thread(lambda: tls_fault(target, tls)) if found is _Found.NOTHING else None
        if fault is not None:
            raise ConnectionLost(fault, applied=False, target=target)
        if found is _Found.ANOTHER or left_seconds <= 0:
            raise ConnectionLost(_complaint(found, target, timeout_seconds), applied=False, target=target)
        time.sleep(min(pause_seconds, left_seconds))
        pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)


def _wait_for_answer(channel: grpc.Channel, deadline: float) -> _Found:
    """What is there, as soon as it is neither silent nor starting, or at the deadline."""
    while True:
        left_seconds = deadline - time.monotonic()
        attempt_seconds = min(max(left_seconds, _SHORTEST_ATTEMPT_SECONDS), _ATTEMPT_SECONDS)
        found = in_own_thread(lambda seconds=attempt_seconds: _look(channel, seconds))  # type: ignore[misc]
        if found not in (_Found.STARTING, _Found.SILENCE) or time.monotonic() >= deadline:
            return found
        if found is _Found.STARTING:
            time.sleep(_SHORTEST_PAUSE_SECONDS)


def _look(channel: grpc.Channel, timeout_seconds: float) -> _Found:
    request = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
    try:
        status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_seconds).status
    except grpc.RpcError as error:
        call: Any = error
        return _FOUND.get(call.code(), _Found.NOTHING)
    return _Found.SERVING if status == health_pb2.HealthCheckResponse.SERVING else _Found.STARTING


_FOUND = {
    grpc.StatusCode.DEADLINE_EXCEEDED: _Found.SILENCE,
    grpc.StatusCode.NOT_FOUND: _Found.ANOTHER,
    grpc.StatusCode.UNIMPLEMENTED: _Found.ANOTHER,
}


def _complaint(found: _Found, target: str, timeout_seconds: float) -> str:
    if found is _Found.STARTING:
        return f"{target} is not serving after {timeout_seconds:g} s: it is starting or about to stop"
    why = "another gRPC server answers" if found is _Found.ANOTHER else why_nobody_answers(target)
    waited = "" if found is _Found.ANOTHER else f" after {timeout_seconds:g} s"
    return f"no gradwire server at {target}{waited}: {why}; start one with `gradwire serve`"
