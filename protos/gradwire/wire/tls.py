"""What a client needs to speak TLS to a server: whom it trusts, and who it is itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gradwire.wire.hosts import is_unix

_VARIABLES = {field: f"GRADWIRE_TLS_{field.upper()}" for field in ("ca", "cert", "key", "server_name")}


class Pem(NamedTuple):
    """Contents of the files, in the order of ``grpc.ssl_channel_credentials``; None: there is no such file."""

    ca: bytes | None
    key: bytes | None
    cert: bytes | None


@dataclass(frozen=True)
class TLS:
    """Files in PEM format. They are read again when they change, so a pair can be renewed while a training runs.

    Raises ValueError for half of a pair.
    """

    ca: str | Path | None = None
    """The authorities that may vouch for the server; None: those that gRPC brings along."""
    cert: str | Path | None = None
    """Certificate, and those between it and its authority, by which the server knows this client; None: it need not."""
    key: str | Path | None = None
    """Private key of ``cert``."""
    server_name: str | None = None
    """The name that the server's certificate must have; None: the host of the target."""

    def __post_init__(self) -> None:
        for field in _VARIABLES:
            value = getattr(self, field)
            if not (value is None or (isinstance(value, (str, Path)) and str(value))):
                raise ValueError(
                    f"{field} is {value!r}; expected None or {'a name' if field == 'server_name' else 'a file'}"
                )
        if (self.cert is None) != (self.key is None):
            raise ValueError(f"cert is {self.cert!r} and key is {self.key!r}; expected both, or neither")

    @classmethod
    def from_environment(cls) -> TLS | None:
        """As ``GRADWIRE_TLS_CA``, ``_CERT``, ``_KEY`` and ``_SERVER_NAME`` say; None where they say nothing."""
        try:
            return tls_of(*map(os.environ.get, _VARIABLES.values()))
        except ValueError as error:
            raise ValueError(f"GRADWIRE_TLS_CERT and GRADWIRE_TLS_KEY: {error}") from None

    def read(self) -> Pem:
        """Raises OSError."""
        return Pem(*(None if file is None else Path(file).read_bytes() for file in (self.ca, self.key, self.cert)))

    def stamp(self) -> tuple[object, ...]:
        """Another one whenever a file has changed."""
        return stamp_of(self.ca, self.key, self.cert)


def tls_of(ca: str | None, cert: str | None, key: str | None, server_name: str | None) -> TLS | None:
    """Of options that may not have been given, or are empty; None where none was. Raises ValueError."""
    given = (ca or None, cert or None, key or None, server_name or None)
    return TLS(*given) if any(given) else None


def tls_options(tls: TLS) -> list[tuple[str, str]]:
    """Channel options of gRPC's."""
    return [] if tls.server_name is None else [("grpc.ssl_target_name_override", tls.server_name)]


def tls_to(target: str, tls: TLS | None) -> TLS | None:
    """What a client with ``tls`` uses of it to speak to ``target``: over a unix socket nobody listens."""
    return None if is_unix(target) else tls


def stamp_of(*files: str | Path | None) -> tuple[object, ...]:
    """Another one whenever one of the files has changed, or has come or gone; what links lead to counts."""
    return tuple(_stamp(file) for file in files if file is not None)


def _stamp(file: str | Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
