"""What a server asks of who comes, and what it shows of itself: made as it was configured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gradwire.server.access.access_file import BadAccessFile
from gradwire.server.access.audit import AuditLog
from gradwire.server.access.gate import Gate
from gradwire.server.config import ConfigError, ServerConfig

if TYPE_CHECKING:  # a server without TLS does without the library that reads certificates
    from gradwire.server.access.certificates import RenewedCertificates


def gate_of(config: ServerConfig) -> Gate | None:
    """Raises ConfigError."""
    if not config.access:
        return None
    try:
        return Gate(Path(config.access))
    except (BadAccessFile, OSError) as error:
        raise ConfigError(f"the access file {config.access}: {error}") from None


def audit_log_of(config: ServerConfig) -> AuditLog | None:
    """Raises ConfigError."""
    if not config.audit_log:
        return None
    try:
        return AuditLog(Path(config.audit_log))
    except OSError as error:
        raise ConfigError(f"the audit log {config.audit_log}: {error.strerror}") from None


def certificates_of(config: ServerConfig) -> RenewedCertificates | None:
    """The server's own; None: nothing is to be encrypted. Raises ConfigError."""
    if not config.tls_cert:
        return None
    try:
        from gradwire.server.access.certificates import BadCertificate, CertificateFiles, RenewedCertificates
    except ModuleNotFoundError as error:
        raise ConfigError(f"--tls-cert needs {error.name}; pip install 'gradwire[server]'") from None
    client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
    try:
        return RenewedCertificates(CertificateFiles(Path(config.tls_cert), Path(config.tls_key), client_ca))
    except (BadCertificate, OSError) as error:
        raise ConfigError(f"the files of TLS: {error}") from None
