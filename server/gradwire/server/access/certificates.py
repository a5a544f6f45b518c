"""The server's certificate and private key, and the authorities of its clients: files that are renewed under it."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gradwire.wire.tls import stamp_of

log = logging.getLogger(__name__)

_CURVES = ("secp256r1", "secp384r1")
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
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise BadCertificate(f"{self.key} is no private key in PEM format without a password: {error}") from None
        if not (isinstance(private, rsa.RSAPrivateKey) or _curve(private) in _CURVES):
            raise BadCertificate(
                f"{self.key} is of a kind that gRPC does not speak; expected RSA, or EC on P-256 or P-384"
            )
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if private.public_key().public_bytes(*form) != chain[0].public_key().public_bytes(*form):
            raise BadCertificate(f"{self.key} is not the key of {self.cert}")
        if client_ca is not None and self.client_ca is not None:
            _certificates(client_ca, self.client_ca)
        return Certificates(cert, key, client_ca, chain[0].not_valid_after_utc)

    def require_files(self) -> None:
        """Raises BadCertificate for what would have to be waited for. At a start a pipe will do."""
        for path in (self.cert, self.key, self.client_ca):
            if path is not None and path.exists() and not path.is_file():
                raise BadCertificate(f"{path} is no file any more")

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
        self.refusals = 0
        """How often files were not good: each state of them counts once."""
        self._said_at = float("-inf")
        self._say_when_it_expires()

    def renew(self) -> Certificates:
        """What there is now. Files that are not good are logged once, and read again until they are."""
        with self._lock:
            self._say_when_it_expires()
            stamp = self._files.stamp()
            if stamp == self._stamp:
                return self.now
            try:
                self._files.require_files()
                found = self._files.read()
            except (BadCertificate, OSError) as error:
                if str(error) != self.error:
                    self.refusals += 1
                    log.error("the certificate stays as it was: %s", error)
                self.error = str(error)
                return self.now
            self._stamp, self.error = stamp, ""
            if found != self.now:
                self.now = found
                self._said_at = float("-inf")
                log.info(
                    "the certificate has been renewed, and is good until %s", f"{found.expires:%Y-%m-%d %H:%M} UTC"
                )
            return self.now

    def _say_when_it_expires(self) -> None:
        """Once a day, when it is soon."""
        days = (self.now.expires - datetime.now(UTC)).total_seconds() / _DAY_SECONDS
        if days < _SOON_DAYS and time.monotonic() - self._said_at > _DAY_SECONDS:
            self._said_at = time.monotonic()
            log.warning("the certificate %s", f"expires in {days:.1f} days" if days > 0 else "has expired")


def _curve(key: object) -> str:
    return key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else ""


def _certificates(pem: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise BadCertificate(f"{path} holds no certificate in PEM format") from None
