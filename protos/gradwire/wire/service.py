"""What both sides must agree on about the gRPC service itself. Imports neither numpy nor
protobuf: health is asked every few seconds."""

from __future__ import annotations

from urllib.parse import unquote

SERVICE_NAME = "gradwire.v1.OptimizerService"
"""Full name of the service, under which health is asked for it."""

MAX_MESSAGE_BYTES = 16 * 2**20
"""No message of the contract is larger; both sides set it as gRPC's limit."""

MESSAGE_OPTIONS = [
    # A slice may fill a message; its other fields need a little more.
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + 64 * 1024),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES + 64 * 1024),
]
"""gRPC channel and server options for the contract's message size."""


def is_local(address: str) -> bool:
    """Whether ``address``, a target of a client or a peer as gRPC names it, leads to this host's own loopback.

    Behind it may still be another host: a tunnel, or a container.
    """
    for scheme in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        address = address.removeprefix(scheme)
    host = unquote(address).rpartition(":")[0].strip("[]").removeprefix("::ffff:")
    return address.startswith(("unix:", "unix-abstract:")) or host in ("localhost", "::1") or host.startswith("127.")


def local_options(target: str) -> list[tuple[str, int]]:
    """Channel options for ``target``: an HTTP proxy from the environment must not stand between two local processes."""
    return [("grpc.enable_http_proxy", 0)] if is_local(target) else []
