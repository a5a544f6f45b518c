"""What a server can be told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from gradwire.server.limits import available_memory_bytes
from gradwire.wire.layout import MAX_ELEMENTS

MAX_SECONDS = 1e6
"""Longest time that a setting may have, eleven days: gRPC counts milliseconds in 31 bits."""


SIZE_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
"""Bytes, by what sizes are written in."""


class ConfigError(ValueError):
    """Raised when a setting is malformed or refused; the message says what was expected."""


@dataclass(frozen=True)
class ServerConfig:
    """Settings of one server. Raises ConfigError."""

    listen: tuple[str, ...] = ("127.0.0.1:50051",)
    """Addresses, ``host:port`` or ``unix:PATH``; port 0 takes any free one."""
    insecure: bool = False
    """Serve beyond loopback although nobody is asked who they are, and, without ``tls_cert``, nothing is encrypted."""
    tls_cert: str = ""
    """PEM file of the server's certificate, and those up to its authority; empty: nothing is encrypted."""
    tls_key: str = ""
    """PEM file of its private key."""
    tls_client_ca: str = ""
    """PEM file of authorities, by one of which clients need a certificate; empty: they need none."""
    access: str = ""
    """TOML file of tokens, certificates and tenants; empty: nobody is asked who they are."""
    audit_log: str = ""
    """File to which a line of JSON is added for every call but steps; empty: none."""
    http: str = ""
    """``HOST:PORT`` for those who watch the server; empty: there is no such door."""
    http_name: tuple[str, ...] = ()
    """Names, beside that of ``http``, localhost and addresses, by which it may be called without TLS."""
    metrics_per_run: bool = False
    """Show series of each run too."""
    max_connections: int = 4096
    """Connections at a time; more are refused."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    threads: int = 0
    """Threads that share a large CPU update; 0: one for each processor that this process, or its container, may use."""
    worker_threads: int = 8
    """Threads that wait for bulk work, so that the event loop does not."""
    max_parameters: int = MAX_ELEMENTS
    """Elements that one run may have."""
    max_memory: int = 0
    """Bytes for runs, staging, results and copies together; 0: three quarters of what there is."""
    max_result: int = 256 * 2**20
    """Bytes of the largest trajectory that a block may ask for."""
    stall_timeout_seconds: float = 60.0
    """A reply that the peer does not take for this long ends its stream."""
    keepalive_seconds: float = 10.0
    """An idle connection is probed this often, and closed if the probe is not answered for twice as long."""
    data_dir: str = ""
    """Directory in which runs are kept; empty: in memory only."""
    snapshot_interval_seconds: float = 30.0
    """How often a run that has changed is saved."""
    snapshot_steps: int = 0
    """A run is saved after so many steps too; 0: after no number in particular."""
    snapshots_kept: int = 3
    """Snapshots of a run that are kept, besides those that somebody has asked for."""
    drain_timeout_seconds: float = 30.0
    """After SIGTERM, steps under way get this long to finish."""
    shared_memory: bool = True
    """Share memory with clients of the same user on this host, so that their values need not pass through gRPC."""
    reflection: bool = False
    """Serve gRPC reflection."""
    log_format: str = "text"
    """``text`` or ``json``."""

    def __post_init__(self) -> None:
        if not self.listen:
            raise ConfigError("no address to listen on; expected HOST:PORT or unix:PATH")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError(
                f"tls_cert is {self.tls_cert!r}, and tls_key is {self.tls_key!r}; expected both, or neither"
            )
        if self.tls_client_ca and not self.tls_cert:
            raise ConfigError(f"tls_client_ca is {self.tls_client_ca!r}; expected a certificate and its key with it")
        if self.reflection and self.access:
            raise ConfigError("reflection is True, and answers anybody; expected no access file with it")
        asks = bool(self.access or self.tls_client_ca)
        if self.http.startswith("unix:"):
            raise ConfigError(f"http is {self.http!r}; expected HOST:PORT")
        for name in ("http_name", "metrics_per_run"):
            if getattr(self, name) and not self.http:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, without --http; expected both, or neither")
        for address in (*self.listen, *([self.http] if self.http else [])):
            if not is_local(address) and not (self.tls_cert and asks) and not self.insecure:
                lacks = "does not encrypt" if asks else "does not ask who comes"
                if not asks and not self.tls_cert:
                    lacks = "neither encrypts nor asks who comes"
                raise ConfigError(
                    f"refusing to listen on {address!r}: it can be reached from other machines, and this server "
                    f"{lacks}. Pass --tls-cert and --tls-key, and --access or --tls-client-ca, listen on 127.0.0.1, or "
                    "pass --insecure if the network itself is trusted"
                )
        if self.log_format not in ("text", "json"):
            raise ConfigError(f"log format is {self.log_format!r}; expected 'text' or 'json'")
        for name in ("threads", "max_memory", "snapshot_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("max_connections", "worker_threads", "max_parameters", "max_result", "snapshots_kept"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        seconds = ("stall_timeout_seconds", "keepalive_seconds", "drain_timeout_seconds", "snapshot_interval_seconds")
        for name in seconds:
            if not 0 < getattr(self, name) <= MAX_SECONDS:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; expected a finite number above 0, at most {MAX_SECONDS:.0f}"
                )
        if not self.max_memory:
            object.__setattr__(self, "max_memory", available_memory_bytes() * 3 // 4)


def is_local(address: str) -> bool:
    """Whether only this machine reaches ``address``. Raises ConfigError when it is no address."""
    if address.startswith("unix:"):
        if not address[len("unix:") :]:
            raise ConfigError("'unix:' has no path; expected unix:PATH")
        return True
    host, separator, port = address.rpartition(":")
    if not separator or not (port.isascii() and port.isdecimal()) or int(port) > 65535 or not host:
        raise ConfigError(f"{address!r} is no address; expected HOST:PORT or unix:PATH")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:  # gRPC would take all of it for the host, and choose the port itself
        raise ConfigError(f"{address!r} is no address; expected an IPv6 host in brackets, as in [::1]:50051")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name: wherever it resolves to today, it may not tomorrow
