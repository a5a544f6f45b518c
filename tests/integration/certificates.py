"""Authorities and certificates of tests, as files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trustme

from gradwire.wire.tls import TLS


class Files:
    """A server's and a client's certificate by one authority, in a folder; each can be made anew."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.names = names or ("localhost", "127.0.0.1")
        folder.mkdir(exist_ok=True)
        self.authority = trustme.CA()
        self.trust(self.authority)
        self.renew("server")
        self.renew("client")

    def trust(self, *authorities: trustme.CA) -> None:
        """Both sides trust these."""
        bundle = b"".join(authority.cert_pem.bytes() for authority in authorities)
        self._replace("ca.pem", bundle)

    def renew(self, who: str, names: tuple[str, ...] | None = None, *, expired: bool = False) -> None:
        """Another pair, put in place as certificate managers do: whole files, one after the other."""
        until = datetime.now(UTC) + (timedelta(days=-1) if expired else timedelta(days=90))
        since = until - timedelta(days=30 if expired else 100)
        pair = self.authority.issue_cert(
            *(names or (self.names if who == "server" else ("worker",))), not_before=since, not_after=until
        )
        self._replace(f"{who}.key", pair.private_key_pem.bytes())
        self._replace(f"{who}.pem", b"".join(blob.bytes() for blob in pair.cert_chain_pems))

    def _replace(self, name: str, content: bytes) -> None:
        new = self.folder / f".{name}"
        new.write_bytes(content)
        new.replace(self.folder / name)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def server(self) -> dict[str, Any]:
        """Settings of a server that asks for no client's certificate."""
        return {"tls_cert": self.path("server.pem"), "tls_key": self.path("server.key")}

    @property
    def mutual(self) -> dict[str, Any]:
        return {**self.server, "tls_client_ca": self.path("ca.pem")}

    @property
    def trusting(self) -> TLS:
        return TLS(ca=self.path("ca.pem"))

    @property
    def known(self) -> TLS:
        return TLS(self.path("ca.pem"), self.path("client.pem"), self.path("client.key"))
