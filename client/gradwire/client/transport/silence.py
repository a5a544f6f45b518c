"""Why nobody answers at an address, in the operating system's words rather than in gRPC's."""

from __future__ import annotations

import socket
from contextlib import closing

from gradwire.wire.hosts import host_and_port
from gradwire.wire.proxies import proxy_to

_LOOK_SECONDS = 1.0


def why_nobody_answers(target: str) -> str:
    """Looks for itself, at most a second after the name is resolved."""
    proxy = proxy_to(target)
    if proxy is not None:
        return (
            f"it was asked for through the proxy that {proxy.variable} names, {proxy.shown} "
            f"(no_proxy={proxy.host} would ask it directly)"
        )
    try:
        with closing(_connected(target)):
            return "something listens there that does not answer as one"
    except socket.gaierror:
        return "this name is not known"
    except TimeoutError:
        return "nothing answers"
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _connected(target: str) -> socket.socket:
    for scheme, prefix in (("unix:", ""), ("unix-abstract:", "\0")):
        if target.startswith(scheme):
            unix = socket.socket(socket.AF_UNIX)
            try:
                unix.settimeout(_LOOK_SECONDS)
                path = target.removeprefix(scheme)
                unix.connect(prefix + (path.removeprefix("//") if path.startswith("///") else path))
            except BaseException:
                unix.close()
                raise
            return unix
    host, port = host_and_port(target)
    return socket.create_connection((host, int(port)), _LOOK_SECONDS)
