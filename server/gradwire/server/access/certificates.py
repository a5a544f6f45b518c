"""The server's certificate and private key, and the authorities of its clients: files that are renewed under it."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gradwire.wire.tls import stamp_of

log = logging.getLogger(__name__)

_SOON_DAYS = 30
_DAY_SECONDS = 86_400.0


class BadCertificate(ValueError):
    """Raised for files that are no certificate, no key, or not each other's."""


@dataclass(frozen=True)
class Certificates:
    """Contents of the files, which fit together."""

    cert: bytes
    key: bytes
    client_ca: bytes | None
    """The authorities of clients; None: clients are not asked for a certificate."""
    expires: datetime
    """Of the server's own certificate."""


@dataclass(frozen=True)
class CertificateFiles:
    """Where they are, in PEM format."""

    cert: Path
    """The server's certificate, and those between it and its authority."""
    key: Path
    client_ca: Path | None = None

    def read(self) -> Certificates:
        """Raises BadCertificate, OSError."""
        cert, key = self.cert.read_bytes(), self.key.read_bytes()
        client_ca = None if self.client_ca is None else self.client_ca.read_bytes()
        chain = _certificates(cert, self.cert)
        try:
            private = load_pem_private_key(key, None)
        except (ValueError, TypeError) as error:
            raise BadCertificate(f"{self.key} is no private key in PEM format without a password: {error}") from None
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if private.public_key().public_bytes(*form) != chain[0].public_key().public_bytes(*form):
            raise BadCertificate(f"{self.key} is not the key of {self.cert}")
        if client_ca is not None and self.client_ca is not None:
            _certificates(client_ca, self.client_ca)
        return Certificates(cert, key, client_ca, chain[0].not_valid_after_utc)

    def stamp(self) -> tuple[object, ...]:
        """Another one whenever a file has changed."""
        return stamp_of(self.cert, self.key, self.client_ca)


class RenewedCertificates:
    """The newest good contents of the files. Any thread may ask; renewing is cheap where nothing has changed.

    Raises BadCertificate and OSError for what is there at first.
    """

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._stamp = files.stamp()
        self.now = files.read()
        self.error = ""
        """Why the files as they are now are not used; empty: they are."""
        self._said_at = float("-inf")
        self._say_when_it_expires()

    def renew(self) -> Certificates | None:
        """What the files hold, where that is new and good; a pair that is not is logged, and the old one stays."""
        with self._lock:
            self._say_when_it_expires()
            stamp = self._files.stamp()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            try:
                found = self._files.read()
            except (BadCertificate, OSError) as error:
                self.error = str(error)
                log.error("the certificate stays as it was: %s", error)
                return None
            self.error = ""
            if found == self.now:
                return None
            self.now = found
            log.info("the certificate has been renewed, and is good until %s", f"{found.expires:%Y-%m-%d %H:%M} UTC")
            self._said_at = float("-inf")
            return found

    def _say_when_it_expires(self) -> None:
        """Once a day, when it is soon."""
        days = (self.now.expires - datetime.now(UTC)).total_seconds() / _DAY_SECONDS
        if days < _SOON_DAYS and time.monotonic() - self._said_at > _DAY_SECONDS:
            self._said_at = time.monotonic()
            log.warning("the certificate %s", f"expires in {days:.1f} days" if days > 0 else "has expired")


def _certificates(pem: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise BadCertificate(f"{path} holds no certificate in PEM format") from None
