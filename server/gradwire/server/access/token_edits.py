"""Edits of the access file: what is around them, comments too, stays as it is."""

from __future__ import annotations

import fcntl
import os
import secrets
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from gradwire.server.access.access_file import BadAccessFile, digest_of, parse_access_list
from gradwire.server.access.identity import DEFAULT_TENANT
from gradwire.wire.whole_file import whole_file

PREFIX = "gw_"
"""Secrets begin with it, so that scanners of source code can find one that has got there."""


def new_secret() -> str:
    """256 random bits, as a word."""
    return PREFIX + secrets.token_urlsafe(32)


def add_token(
    path: Path,
    name: str,
    tenant: str,
    role: str,
    *,
    expires: datetime | None = None,
    runs: tuple[str, ...] = (),
    workers: tuple[str, ...] = (),
) -> str:
    """Adds a token, and its tenant where that is new; returns its secret, which is kept nowhere.

    The file is made where there is none. Raises BadAccessFile for what `read_access_file` would not take, OSError.
    """
    secret = new_secret()

    def add(document: Any) -> None:
        if tenant != DEFAULT_TENANT:
            tenants = document.setdefault("tenants", tomlkit.table(is_super_table=True))
            if tenant not in tenants:
                tenants[tenant] = tomlkit.table()
        token = tomlkit.table()
        token["id"], token["sha256"], token["tenant"], token["role"] = name, digest_of(secret), tenant, role
        if expires is not None:
            token["expires"] = expires
        if runs:
            token["runs"] = list(runs)
        if workers:
            token["workers"] = list(workers)
        document.setdefault("tokens", tomlkit.aot()).append(token)

    _edit(path, add)
    return secret


def remove_token(path: Path, name: str) -> None:
    """Raises BadAccessFile where there is no such token."""

    def remove(document: Any) -> None:
        tokens = document.get("tokens", [])
        at = next((number for number, token in enumerate(tokens) if token.get("id") == name), None)
        if at is None:
            raise BadAccessFile(f"there is no token {name!r}")
        del tokens[at]

    _edit(path, remove)


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    """The whole file anew, or not at all; one editor at a time."""
    path = path.resolve()
    with _locked(path):
        data = path.read_bytes() if path.exists() else b""
        parse_access_list(data)  # nothing is added to what the server would refuse
        try:
            document = tomlkit.parse(data.decode())
            change(document)
            text = tomlkit.dumps(document).encode()
            if not text.strip():  # which a server would take for a file that is half written
                text = b"# No tokens: nobody gets in.\n"
            tomllib.loads(text.decode())  # it adds tables to lists that are written otherwise
        except (TOMLKitError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, BadAccessFile):
                raise
            raise BadAccessFile(
                "it has tokens or tenants in a form that is not edited; expected [[tokens]], [tenants.T]"
            ) from None
        parse_access_list(text)
        before = path.stat() if path.exists() else None
        with whole_file(path) as file:
            if before is None:
                os.fchmod(file.fileno(), 0o600)
            else:  # the server may be another user than who edits
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A lock file beside it: the file itself is another one after each edit."""
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
