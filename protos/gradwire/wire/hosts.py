"""Targets of clients and peers as gRPC names them, and the hosts that they name."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import unquote

_SCHEMES = ("dns:///", "dns:", "ipv4:", "ipv6:")
_UNIX_SCHEMES = ("unix:", "unix-abstract:")


def host_and_port(address: str) -> tuple[str, str]:
    """Of ``HOST:PORT``, without brackets; the port is empty where there is none."""
    for scheme in _SCHEMES:
        address = address.removeprefix(scheme)
    address = unquote(address)
    host, colon, port = address.rpartition(":")
    if not colon or "]" in port or (":" in host and not host.startswith("[")):  # an IPv6 address, and no port
        host, port = address, ""
    return host.strip("[]"), port


def is_unix(address: str) -> bool:
    """Whether ``address``, a target of a client or a peer as gRPC names it, is a unix socket."""
    return address.startswith(_UNIX_SCHEMES)


def is_loopback(address: str) -> bool:
    """Whether what is sent to ``address`` in the clear stays on this host: a unix socket, `localhost`, or an address of
    loopback in full. No resolver is asked for those; for `worker.localhost` and `127.1` one may be, and lie.

    Behind it may still be another host: a tunnel, or a container.
    """
    if is_unix(address):
        return True
    host = host_and_port(address)[0].casefold()
    if host in ("localhost", "localhost."):
        return True
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return False
    number = getattr(number, "ipv4_mapped", None) or number
    return number.is_loopback or number.is_unspecified  # who connects to 0.0.0.0 comes to loopback


def is_local(address: str) -> bool:
    """Whether ``address``, a target of a client or a peer as gRPC names it, leads to this host's own loopback.

    Behind it may still be another host: a tunnel, or a container.
    """
    if is_loopback(address):
        return True
    host = host_and_port(address)[0].casefold().removesuffix(".")
    return host.endswith(".localhost") or (host.startswith("127.") and host.replace(".", "").isdecimal())  # 127.1


def is_this_host(address: str) -> bool:
    """Whether ``address`` leads to this host by any of its names and addresses. Asks the resolver for a name."""
    if is_local(address):
        return True
    host = host_and_port(address)[0]
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(_is_ours(family, place) for family, _, _, _, place in found)


def _is_ours(family: socket.AddressFamily, place: tuple[object, ...]) -> bool:
    """Whether an interface of this host has the address: only such can be bound."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True
