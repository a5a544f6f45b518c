"""Whom a request is meant for.

A page from elsewhere can have its own name lead to the loopback address of this machine, and a browser then lets it
read what is served there. It cannot make the browser ask for another name than its own, nor for an address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable


class OwnNames:
    """The names by which a server may be called; addresses always may.

    Args:
        names: host names, in any case.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {"localhost", *(name.lower().rstrip(".") for name in names)}

    def has(self, host: str) -> bool:
        """Whether a header ``Host`` means this server."""
        if host.startswith("["):
            name, closed, rest = host[1:].partition("]")
            return bool(closed) and _is_address(name) and (not rest or _is_port(rest))
        name, colon, port = host.partition(":")
        if colon and not _is_port(f":{port}"):
            return False
        return _is_address(name) or name.lower().rstrip(".") in self._names


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdecimal()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
