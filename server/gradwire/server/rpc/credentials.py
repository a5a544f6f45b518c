"""The server's certificates as gRPC takes them: asked for anew before each handshake."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:  # a server without TLS does without the library that reads certificates
    from gradwire.server.access.certificates import Certificates, RenewedCertificates


def server_credentials(certificates: RenewedCertificates, begun: Callable[[], None]) -> grpc.ServerCredentials:
    """Of one port. Where there are authorities of clients, nobody without a certificate by one of them gets in.

    Args:
        begun: called at each handshake, in a thread of gRPC's.
    """
    used = certificates.now

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        begun()
        found = certificates.renew()
        if found is used:
            return None
        used = found
        return _configuration(found)

    fetch: Any = renewed  # None for no change is documented, and not in its types
    return grpc.dynamic_ssl_server_credentials(_configuration(used), fetch, used.client_ca is not None)


def _configuration(found: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(found.key, found.cert)], found.client_ca)
