"""A certificate authority of one's own, for a development network: `gradwire certs dev`."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT_NAME = "gradwire-client"
_LABEL = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_CLOCKS_DIFFER = timedelta(minutes=5)


def write_certificates(folder: Path, names: Sequence[str], days: int) -> list[Path]:
    """An authority, and certificates by it for a server and for a client; returns the six files.

    Args:
        folder: is made; none of the files may be there.
        names: host names and addresses by which clients call the server.
        days: for which all are good.

    Raises FileExistsError, OSError, ValueError for what is no host name.
    """
    for name in names:
        _general_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{who}.{kind}" for who in ("ca", "server", "client") for kind in ("pem", "key")]
    there = [str(path) for path in paths if path.exists()]
    if there:
        raise FileExistsError(f"{', '.join(there)} exist already; expected a folder without them")
    until = datetime.now(UTC) + timedelta(days=days)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("gradwire development CA", ca_key, until, issuer=None, issuer_key=ca_key)
    made = [(ca, ca_key)]
    for name, alternatives, usage in (
        (names[0], names, ExtendedKeyUsageOID.SERVER_AUTH),
        (CLIENT_NAME, [CLIENT_NAME], ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        made.append((_certificate(name, key, until, ca, ca_key, alternatives, usage), key))
    contents = [
        part
        for certificate, key in made
        for part in (
            certificate.public_bytes(Encoding.PEM),
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        )
    ]
    for path, content in zip(paths, contents, strict=True):
        mode = 0o600 if path.suffix == ".key" else 0o644
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    return paths


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    until: datetime,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    alternatives: Sequence[str] = (),
    usage: x509.ObjectIdentifier | None = None,
) -> x509.Certificate:
    """``issuer``: None: it vouches for itself, as an authority does."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _CLOCKS_DIFFER)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=issuer is None,
                crl_sign=issuer is None,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_general_name, alternatives))), False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _general_name(name: str) -> x509.GeneralName:
    """Raises ValueError."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if _HOST_NAME.fullmatch(name) is None:
            raise ValueError(
                f"{name!r} is no host name and no address; expected some such as server.example.org"
            ) from None
        return x509.DNSName(name)
