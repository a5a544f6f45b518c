"""The access file: which tokens and certificates there are, and for whom. Read whole, or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from gradwire.server.access.identity import DEFAULT_TENANT, Identity, Role
from gradwire.server.access.quotas import MOST, RATES, SIZES, Quotas
from gradwire.server.config import SIZE_UNITS
from gradwire.wire.layout import TENANT_NAME

MAX_BYTES = 16 * 2**20
"""Of an access file."""

_TENANT = re.compile(TENANT_NAME, re.ASCII)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_SIZE = re.compile(rf"([0-9]{{1,12}}) ?({'|'.join(SIZE_UNITS)})", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_COMMON = {"tenant", "role", "expires", "runs", "workers"}


class BadAccessFile(ValueError):
    """Raised for an access file that cannot be taken; says what was expected, and holds no secret."""


@dataclass(frozen=True)
class AccessList:
    """Contents of an access file."""

    tokens: Mapping[str, Identity]
    """By the SHA-256 of the secret, in hexadecimal."""
    certificates: Mapping[str, Identity]
    """By subject alternative name."""
    quotas: Mapping[str, Quotas]
    """Of each tenant."""

    @cached_property
    def by_id(self) -> Mapping[str, list[Identity]]:
        """All that there are; a token and a certificate may be called the same."""
        found: dict[str, list[Identity]] = {}
        for identity in (*self.tokens.values(), *self.certificates.values()):
            found.setdefault(identity.id, []).append(identity)
        return found


def read_access_file(path: Path) -> bytes:
    """Raises BadAccessFile, OSError."""

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # a FIFO would wait for a writer

    with open(path, "rb", opener=without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadAccessFile("it is no file")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadAccessFile(f"it has more than {MAX_BYTES} bytes")
    return data


def parse_access_list(data: bytes) -> AccessList:
    """Raises BadAccessFile."""
    try:
        found = tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise BadAccessFile("it is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        # Not always TOMLDecodeError: a number may have too many digits, a list lie too deep.
        raise BadAccessFile(f"it is no TOML: {error}") from None
    _check_keys(found, {"tenants", "tokens", "certificates"}, "the file")
    quotas = _tenants(found.get("tenants", {}))
    tenants = set(quotas)
    tokens = [_token(number, entry, tenants) for number, entry in enumerate(_list(found, "tokens"), 1)]
    certificates = [
        _certificate(number, entry, tenants) for number, entry in enumerate(_list(found, "certificates"), 1)
    ]
    _check_unique([identity.id for _, identity in tokens], "id of tokens")
    _check_unique([digest for digest, _ in tokens], "sha256 of tokens", shown=False)
    _check_unique([name for name, _ in certificates], "san of certificates")
    return AccessList(dict(tokens), dict(certificates), quotas)


def digest_of(secret: str) -> str:
    """What of a secret is kept. It has 256 random bits, so that nobody finds it by trying, and needs no salt."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _tenants(found: Any) -> dict[str, Quotas]:
    if not isinstance(found, dict):
        raise BadAccessFile("'tenants' is no table; expected [tenants.NAME]")
    quotas = {DEFAULT_TENANT: Quotas()}
    for name, table in found.items():
        if not _TENANT.fullmatch(name):
            raise BadAccessFile(f"tenant {name!r}; expected 1 to 63 of a-z 0-9 -, beginning with a letter or digit")
        if not isinstance(table, dict):
            raise BadAccessFile(f"tenant {name!r} is no table; expected [tenants.{name}]")
        _check_keys(table, {field.name for field in dataclasses.fields(Quotas)}, f"tenant {name!r}")
        quotas[name] = Quotas(**{key: _amount(value, key, f"tenant {name!r}") for key, value in table.items()})
    return quotas


def _amount(value: Any, key: str, where: str) -> int:
    least = 1 if key in RATES else 0
    amount = value
    if key in SIZES and isinstance(value, str) and (found := _SIZE.fullmatch(value)):
        amount = int(found[1]) * SIZE_UNITS[found[2]]
    if isinstance(amount, int) and not isinstance(amount, bool) and least <= amount <= MOST:
        return amount
    expected = "a number of bytes, or one with KiB, MiB, GiB or TiB" if key in SIZES else f"a number, {least} or more"
    raise BadAccessFile(f"{where}: {key} is {value!r}; expected {expected}")


def _list(found: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = found.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadAccessFile(f"{key!r} is no list of tables; expected [[{key}]]")
    return entries


def _token(number: int, entry: dict[str, Any], tenants: set[str]) -> tuple[str, Identity]:
    where = f"token {number}"
    _check_keys(entry, {"id", "sha256", *_COMMON}, where)
    name = _text(entry, "id", where)
    if not _ID.fullmatch(name):
        raise BadAccessFile(f"{where}: id is {name!r}; expected 1 to 64 of A-Z a-z 0-9 . _ -")
    where = f"token {name!r}"
    digest = _text(entry, "sha256", where)
    if not _SHA256.fullmatch(digest):  # not shown: it may be the secret itself
        raise BadAccessFile(
            f"{where}: sha256 is no SHA-256; expected 64 of 0-9 a-f, as `gradwire tokens create` writes"
        )
    return digest, _identity(name, entry, tenants, where, digest)


def _certificate(number: int, entry: dict[str, Any], tenants: set[str]) -> tuple[str, Identity]:
    where = f"certificate {number}"
    _check_keys(entry, {"san", *_COMMON}, where)
    name = _text(entry, "san", where)
    if not name:
        raise BadAccessFile(f"{where}: san is empty; expected a subject alternative name")
    return name, _identity(name, entry, tenants, f"certificate {name!r}")


def _identity(name: str, entry: dict[str, Any], tenants: set[str], where: str, digest: str = "") -> Identity:
    tenant = _text(entry, "tenant", where)
    if tenant not in tenants:
        raise BadAccessFile(f"{where}: there is no tenant {tenant!r}; expected a table [tenants.{tenant}]")
    role = _text(entry, "role", where)
    names = [member.name.lower() for member in Role]
    if role not in names:
        raise BadAccessFile(f"{where}: role is {role!r}; expected one of {', '.join(names)}")
    expires = entry.get("expires")
    if expires is not None and not (isinstance(expires, datetime) and expires.tzinfo is not None):
        raise BadAccessFile(f"{where}: expires is {expires!s}; expected a time with its zone, 2027-01-31T12:00:00Z")
    patterns: dict[str, Any] = {key: _patterns(entry[key], key, where) for key in ("runs", "workers") if key in entry}
    try:
        seconds = None if expires is None else expires.astimezone(UTC).timestamp()
    except OverflowError:
        raise BadAccessFile(f"{where}: expires is {expires!s}; expected a time before the year 10000 in UTC") from None
    return Identity(tenant, Role[role.upper()], name, seconds, digest=digest, **patterns)


def _patterns(found: Any, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(found, list) or not found or not all(isinstance(pattern, str) and pattern for pattern in found):
        raise BadAccessFile(f"{where}: {key} is no list of patterns; expected {key} = ['a-*'], or no {key} for all")
    return tuple(found)


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise BadAccessFile(f"{where} has no {key}; expected {key} = '...'")
    return value


def _check_keys(table: dict[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            expected = ", ".join(sorted(known)) or "nothing"
            raise BadAccessFile(f"{where}: {key!r} is not known; expected {expected}")


def _check_unique(values: list[str], what: str, *, shown: bool = True) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise BadAccessFile(f"the same {what} stands there twice{f': {twice[0]}' if shown else ''}")
