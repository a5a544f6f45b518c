"""What both sides must agree on about the gRPC service itself. Imports neither numpy nor protobuf: health is asked
often, by a process of its own each time."""

from __future__ import annotations

from gradwire.wire.hosts import is_this_host
from gradwire.wire.proxies import proxy_variable

SERVICE_NAME = "gradwire.v1.OptimizerService"
"""Full name of the service, under which health is asked for it."""

MAX_MESSAGE_BYTES = 16 * 2**20
"""No message of the contract is larger; both sides set it as gRPC's limit."""

MAX_WEIGHT = 1e100
"""Of a contribution to a shared run: sums of them, over rounds too, stay finite."""

MESSAGE_OPTIONS = [
    # A slice may fill a message; its other fields need a little more.
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + 64 * 1024),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES + 64 * 1024),
]
"""gRPC channel and server options for the contract's message size."""


def local_options(target: str) -> list[tuple[str, int]]:
    """Channel options for ``target``: an HTTP proxy from the environment must not stand between two local processes."""
    return [("grpc.enable_http_proxy", 0)] if proxy_variable() and is_this_host(target) else []
