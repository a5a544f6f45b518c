"""Who calls, from what gRPC knows of a call before any message of it has been read."""

from __future__ import annotations

import functools
from datetime import UTC
from typing import Any

from gradwire.server.access.gate import Gate
from gradwire.server.access.identity import ANYBODY, Identity
from gradwire.wire.errors import Unauthenticated

_NAMES = "x509_subject_alternative_name"
_CERTIFICATE = "x509_pem_cert"


def identify(context: Any, gate: Gate | None) -> Identity:
    """By token or certificate; where there is no gate, whoever has come as far may do everything. Raises
    Unauthenticated."""
    if gate is None:
        return ANYBODY
    sent = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if len(sent) > 1:
        raise Unauthenticated("there are several entries of the metadata 'authorization'; expected one")
    if sent:
        value = sent[0]
        return gate.identify(value.decode("latin-1") if isinstance(value, bytes) else value)
    known = context.auth_context() or {}
    names = [name.decode(errors="replace") for name in known.get(_NAMES, ())]
    if not names:
        return gate.identify(None)
    certificate = next(iter(known.get(_CERTIFICATE, ())), b"")
    return gate.identify(None, names, _end_of(certificate))


@functools.lru_cache(maxsize=1024)
def _end_of(certificate: bytes) -> float | None:
    """When a certificate that gRPC has verified ends, in seconds since 1970."""
    from cryptography import x509  # TLS needs it, and so there it is

    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.astimezone(UTC).timestamp()
