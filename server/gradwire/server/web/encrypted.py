"""The server's certificates as Python's own TLS takes them: asked for anew before each handshake."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from gradwire.server.access.certificates import Certificates, RenewedCertificates


class Contexts:
    """Where there are authorities of clients, nobody without a certificate by one of them gets in."""

    def __init__(self, certificates: RenewedCertificates) -> None:
        self._certificates = certificates
        self._used = certificates.now
        self._context = _context(self._used)

    def now(self) -> ssl.SSLContext:
        """For the next handshake; blocks as long as a disk does. Not for two threads at a time."""
        found = self._certificates.renew()
        if found is not self._used:
            self._context, self._used = _context(found), found
        return self._context


def _context(found: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with _file(found.cert + b"\n" + found.key) as path:
        context.load_cert_chain(path)
    if found.client_ca is not None:
        context.load_verify_locations(cadata=found.client_ca.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """Python reads a key from files only, and the one that it came from may have been a pipe, or have changed: this one
    is in memory where the system has such files, else for a moment in a directory that nobody else can read."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("gradwire"), "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.name
