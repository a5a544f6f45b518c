"""What keeps a connection from being made that TLS is to protect, or that it should: one handshake by the standard
library tells, where gRPC has failed without saying why."""

from __future__ import annotations

import socket
import ssl

from gradwire.wire.hosts import host_and_port, is_unix
from gradwire.wire.proxies import proxy_to
from gradwire.wire.tls import TLS, Pem

_EXPIRED, _NOT_YET_VALID = 10, 9
_NOT_VOUCHED_FOR = (2, 18, 19, 20, 21)
_OTHER_NAME = (62, 63, 64)
"""Verify codes of OpenSSL's: x509_vfy.h."""


def checked(tls: TLS) -> Pem:
    """Contents of the files, which fit together: gRPC ends the whole process for some that do not.

    Raises OSError for files that cannot be read, ValueError for those that are not what they should be.
    """
    stamp, pem = tls.stamp(), tls.read()  # first: its errors name the file
    _context(tls)
    if tls.stamp() != stamp:
        raise ValueError("the files of TLS were replaced while they were read; expected a whole pair")
    return pem


def tls_fault(target: str, tls: TLS | None, timeout_seconds: float = 1.0) -> str | None:
    """What of TLS keeps a client with ``tls`` and the server at ``target`` from speaking, in words; None: nothing does,
    or nobody answers there at all, or a proxy stands in between."""
    if is_unix(target) or proxy_to(target) is not None:
        return None
    host, port = host_and_port(target)
    try:
        with socket.create_connection((host, int(port)), timeout_seconds) as connection:
            fault = _handshake_fault(connection, host, tls)
    except (OSError, ValueError):
        return None
    return None if fault is None else f"the server at {target} cannot be spoken with: {fault}"


def _handshake_fault(connection: socket.socket, host: str, tls: TLS | None) -> str | None:
    if tls is None:
        return _answers_to_any_hello(connection)
    name = tls.server_name or host
    try:
        with _context(tls).wrap_socket(connection, server_hostname=name) as wrapped:
            return None if _speaks(wrapped) else _refused("", tls)
    except ssl.SSLCertVerificationError as error:
        return _unverified(error, name, tls)
    except ssl.SSLEOFError:
        return None  # a tunnel, perhaps, whose end is not there yet
    except ssl.SSLError as error:
        reason = error.reason or ""
        return _refused(reason, tls) if "ALERT" in reason else "it does not speak TLS, and this client does"
    except OSError:
        return None


def _speaks(connection: ssl.SSLSocket) -> bool:
    """Whether the server goes on after the handshake. With TLS 1.3 a client has finished before the server has looked
    at its certificate; a gRPC server that accepts it speaks first, and gRPC's own hangs up without an alert if not."""
    try:
        return bool(connection.recv(1))
    except ConnectionResetError:
        return False


def _answers_to_any_hello(connection: socket.socket) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        context.wrap_socket(connection).close()
    except OSError:
        return None
    return "it speaks TLS, and this client does not; expected tls=TLS(ca=...), or GRADWIRE_TLS_CA"


def _context(tls: TLS) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except ssl.SSLError:
        raise ValueError(f"{tls.ca} holds no certificate in PEM format") from None
    context.set_alpn_protocols(["h2"])
    if tls.cert is not None:
        try:
            context.load_cert_chain(tls.cert, tls.key, password=lambda: "")  # else it would be asked for
        except ssl.SSLError as error:
            raise ValueError(
                f"{tls.cert} and {tls.key} are no certificate and its private key, in PEM format and without a "
                f"password ({error.reason or error})"
            ) from None
    return context


def _unverified(error: ssl.SSLCertVerificationError, name: str, tls: TLS) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "its certificate has expired, or that of its authority"
    if code == _NOT_YET_VALID:
        return "its certificate is not valid yet; is the clock right?"
    if code in _OTHER_NAME:
        return f"its certificate is not for {name!r}; TLS(server_name=...) says which name to expect"
    if code in _NOT_VOUCHED_FOR:
        trusted = "those that this machine trusts" if tls.ca is None else str(tls.ca)
        return f"its certificate is by no authority in {trusted}"
    return f"its certificate is not accepted: {error.verify_message}"


def _refused(reason: str, tls: TLS) -> str:
    if tls.cert is None:
        return "it wants to know this client by a certificate; expected TLS(cert=..., key=...)"
    said = f" ({reason.replace('_', ' ').lower()})" if reason else ""
    return f"it does not accept the client certificate {tls.cert}{said}"
