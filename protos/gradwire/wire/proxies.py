"""HTTP proxies of the environment. gRPC goes through them by itself, to this very host as well."""

from __future__ import annotations

import os
from dataclasses import dataclass

from gradwire.wire.hosts import host_and_port, is_this_host

_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
"""gRPC's, in its order; it takes the first one that is set."""
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True)
class Proxy:
    """The proxy between this host and another one."""

    variable: str
    """Of the environment, that names it."""
    shown: str
    """Its URL, without its password."""
    host: str
    """That it is asked for."""


def proxy_to(target: str) -> Proxy | None:
    """The proxy that gRPC goes through to ``target``."""
    variable = proxy_variable()
    if variable is None or is_this_host(target):
        return None
    host = host_and_port(target)[0]
    direct = next((os.environ[name] for name in _EXCEPTIONS if os.environ.get(name)), "")
    if any(end.strip() and host.casefold().endswith(end.strip().casefold()) for end in direct.split(",")):
        return None
    return Proxy(variable, _without_password(os.environ[variable]), host)


def proxy_variable() -> str | None:
    """The variable of the environment that names a proxy for gRPC."""
    return next((name for name in _VARIABLES if os.environ.get(name)), None)


def _without_password(url: str) -> str:
    credentials, at, host = url.rpartition("@")
    scheme, slashes, user = credentials.partition("://") if "://" in credentials else ("", "", credentials)
    name, colon, _ = user.partition(":")
    return f"{scheme}{slashes}{name}{':***' if colon else ''}{at}{host}"
