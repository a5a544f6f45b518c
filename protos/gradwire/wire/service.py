"""What both sides must agree on about the gRPC service itself."""

from __future__ import annotations

from gradwire.v1 import service_pb2
from gradwire.wire.encoding import MAX_MESSAGE_BYTES
from gradwire.wire.hosts import is_this_host
from gradwire.wire.proxies import proxy_variable

SERVICE_NAME: str = service_pb2.DESCRIPTOR.services_by_name["OptimizerService"].full_name
"""Full name of the service, under which health is asked for it."""

MESSAGE_OPTIONS = [
    # A slice may fill a message; its other fields need a little more.
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + 64 * 1024),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES + 64 * 1024),
]
"""gRPC channel and server options for the contract's message size."""


def local_options(target: str) -> list[tuple[str, int]]:
    """Channel options for ``target``: an HTTP proxy from the environment must not stand between two local processes."""
    return [("grpc.enable_http_proxy", 0)] if proxy_variable() and is_this_host(target) else []
