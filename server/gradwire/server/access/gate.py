"""Asks who calls: by token, by certificate, and whether that still holds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from gradwire.server.access.access_file import BadAccessFile, digest_of, parse_access_list, read_access_file
from gradwire.server.access.identity import Identity
from gradwire.server.access.quotas import Quotas
from gradwire.wire.errors import InvalidSpec, Unauthenticated

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""How often the access file is looked at. By its contents: what a link leads to, and a file that is replaced within
one tick of the clock, count too."""

_AGAIN_SECONDS = 0.5
"""How often an unknown token is a reason to look at once."""


class Gate:
    """The access file and what it says now. A file that cannot be taken leaves everything as it was.

    Raises BadAccessFile, OSError where there is nothing to begin with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = read_access_file(path)
        self._list = parse_access_list(self._data)
        self.error = ""
        """Why the file was not taken when it was last looked at."""
        self._lock = threading.Lock()
        self._tried_at = float("-inf")
        if not self._list.by_id:
            log.warning("%s has neither tokens nor certificates: nobody gets in", path)

    @property
    def quotas(self) -> Mapping[str, Quotas]:
        """Of each tenant that stands in the file."""
        return self._list.quotas

    def identify(
        self, authorization: str | None, names: Iterable[str] = (), certificate_expires: float | None = None
    ) -> Identity:
        """Who calls. Raises Unauthenticated, which never holds what was sent.

        Args:
            authorization: the metadata of that name; it alone decides where it is there.
            names: of the client's certificate, which has been verified.
            certificate_expires: when that ends, in seconds since 1970.
        """
        if authorization is not None:
            scheme, _, secret = authorization.partition(" ")
            if scheme.lower() != "bearer" or not secret.strip():
                raise Unauthenticated("the metadata 'authorization' is malformed; expected 'Bearer TOKEN'")
            digest = digest_of(secret.strip())
            found = self._list.tokens.get(digest)
            if found is None and self._tries_again():  # a token that has just been made
                found = self._list.tokens.get(digest)
            if found is None:
                raise Unauthenticated("the token is not one of this server's; it may have been revoked")
        else:
            known = (self._list.certificates[name] for name in names if name in self._list.certificates)
            found = next(known, None)
            if found is None:
                raise Unauthenticated("this server wants a token: metadata 'authorization: Bearer TOKEN'")
            found = replace(found, ends=certificate_expires)
        if expired := _expired(found):
            raise Unauthenticated(expired)
        return found

    def require_tenant(self, tenant: str) -> None:
        """Raises InvalidSpec for a tenant that the file does not have: it would be made by a slip of the pen."""
        if tenant not in self._list.quotas:
            raise InvalidSpec(f"there is no tenant {tenant!r}; expected a table [tenants.{tenant}] in the access file")

    def look(self) -> bool:
        """Takes the file as it is now; returns whether anything has changed. Blocks; any thread may call it."""
        with self._lock:
            try:
                data = read_access_file(self._path)
                if data == self._data:
                    self.error = ""
                    return False
                if not data.strip() and self._list.by_id:
                    raise BadAccessFile("it is empty, as one that is half written is; a comment alone lets nobody in")
                found = parse_access_list(data)
            except (BadAccessFile, OSError) as error:
                why = str(error) if isinstance(error, BadAccessFile) else f"it cannot be read: {error.strerror}"
                if why != self.error:
                    log.error("%s stays as it was: %s", self._path, why)
                self.error = why
                return False
            self._data, self._list, self.error = data, found, ""
            log.info("%s: %d tokens, %d certificates", self._path, len(found.tokens), len(found.certificates))
            return True

    def _tries_again(self) -> bool:
        """Whether the file has changed. It is not looked at for every stranger."""
        now = time.monotonic()
        if now - self._tried_at < _AGAIN_SECONDS:
            return False
        self._tried_at = now
        return self.look()

    def over(self, identity: Identity) -> str:
        """Why what ``identity`` came with no longer holds, as the file is now; empty: it does."""
        for other in self._list.by_id.get(identity.id, ()):
            found = replace(other, ends=identity.ends)
            if replace(found, expires=identity.expires) == identity:
                return _expired(found)
        return f"the token or certificate {identity.id!r} has been revoked, or allows other things now"


def _expired(identity: Identity) -> str:
    """That it has; empty: it has not."""
    over = identity.until is not None and identity.until <= time.time()
    return f"the token or certificate {identity.id!r} has expired" if over else ""
