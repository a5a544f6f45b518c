"""Whether a gradwire server answers, and how a channel to it is made."""

from __future__ import annotations

import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradwire.client.errors import ConnectionLost, connection_lost
from gradwire.wire.hosts import is_local
from gradwire.wire.service import MESSAGE_OPTIONS, SERVICE_NAME, local_options

CONNECT_TIMEOUT_SECONDS = 15.0
REACH_TIMEOUT_SECONDS = 5.0
"""How long nobody may answer at all; a server that answers, but is not SERVING yet, gets CONNECT_TIMEOUT_SECONDS."""
PROBE_TIMEOUT_SECONDS = 1.0

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


def channel_to(target: str) -> grpc.Channel:
    """A channel with a connection of its own."""
    window = _WITHOUT_A_LINK if is_local(target) else []
    return grpc.insecure_channel(target, [*_CHANNEL_OPTIONS, *window, *local_options(target)])


def answers(target: str) -> bool:
    """Whether a gradwire server, SERVING or starting, is at ``target``."""
    with grpc.insecure_channel(target, local_options(target)) as channel:
        try:
            _check(channel, PROBE_TIMEOUT_SECONDS)
        except grpc.RpcError:
            return False
    return True


def wait_serving(channel: grpc.Channel, target: str, timeout_seconds: float) -> None:
    """Returns once the server behind ``channel`` is SERVING. Raises ConnectionLost."""
    reached = time.monotonic()
    deadline = reached + timeout_seconds
    while True:
        failure: ConnectionLost | None = None
        try:
            status = _check(channel, max(0.1, deadline - time.monotonic()))
            if status == health_pb2.HealthCheckResponse.SERVING:
                return
            reached = time.monotonic()
            failure = ConnectionLost(f"{target} is not serving: it is starting or about to stop", applied=False)
        except grpc.RpcError as error:
            failure = connection_lost(error, target, applied=False)
            code: Any = error
            if code.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED):
                raise ConnectionLost(f"{target} is no gradwire server", applied=False) from None
        if time.monotonic() > min(deadline, reached + REACH_TIMEOUT_SECONDS):
            raise failure
        time.sleep(0.05)


def _check(channel: grpc.Channel, timeout_seconds: float) -> int:
    request = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
    status: int = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_seconds).status
    return status
