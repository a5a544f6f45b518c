"""What a server listens on: all that an address stands for, or nothing."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable

import grpc

from gradwire.server.config import ConfigError

Credentials = Callable[[], grpc.ServerCredentials]

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Of an address that this machine does not have, as ::1 where IPv6 is turned off: nobody can be reached there."""


def listen(server: grpc.aio.Server, address: str, credentials: Credentials | None = None) -> str:
    """Makes the server listen on ``HOST:PORT`` or ``unix:PATH``; returns it with the port that was really taken.

    gRPC is content with one of the addresses that a name has, and another server on the others gets the rest of the
    clients. ``credentials``: makes those of TLS, anew for each port; a unix socket does without. Raises ConfigError.
    """
    if address.startswith("unix:"):
        if _is_served(address.removeprefix("unix:")):
            raise ConfigError(f"cannot listen on {address}: another server does")  # gRPC would take its place
        _add(server, address, address, None)
        return address
    host, _, wanted = address.rpartition(":")
    port = int(wanted)
    for one in _addresses(host.strip("[]"), port, address):
        port = _add(server, f"[{one}]:{port}" if ":" in one else f"{one}:{port}", address, credentials)
    return f"{host}:{port}"


def _add(server: grpc.aio.Server, one: str, address: str, credentials: Credentials | None) -> int:
    try:
        return server.add_insecure_port(one) if credentials is None else server.add_secure_port(one, credentials())
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {address}: {error}") from None


def _addresses(host: str, port: int, address: str) -> list[str]:
    """The addresses of a host that can be listened on, in numbers. Raises ConfigError where one of them is taken."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return [host]  # gRPC knows what is wrong with it
    here: dict[str, None] = {}
    for family, kind, _, _, place in found:
        try:
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:  # gRPC serves IPv4 too on ::
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, str(place[0]) != "::")
                probe.bind(place)
        except OSError as error:
            if error.errno in _NOT_HERE:
                continue
            raise ConfigError(f"cannot listen on {address}: {place[0]} port {port}: {error.strerror}") from None
        here[host if _is_number(host) else str(place[0])] = None
    return list(here) or [host]


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_served(path: str) -> bool:
    """Whether somebody accepts connections on a unix socket; one that a killed server has left behind is free."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
