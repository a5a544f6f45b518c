"""The access file is taken whole, or not at all, and says why not."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gradwire.server.access.access_file import MAX_BYTES, BadAccessFile, digest_of, parse_access_list, read_access_file
from gradwire.server.access.identity import Identity, Role
from gradwire.server.access.quotas import Quotas

DIGEST = digest_of("secret")
GOOD = f"""
[tenants.lab]
runs = 3
memory = "2GiB"

[[tokens]]
id = "one"
sha256 = "{DIGEST}"
tenant = "lab"
role = "contribute"
expires = 2030-01-02T03:04:05Z
runs = ["phone-*"]
workers = ["a", "b-?"]

[[certificates]]
san = "worker.example"
tenant = "default"
role = "read"
"""


def test_what_stands_there() -> None:
    found = parse_access_list(GOOD.encode())
    expires = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    one = Identity("lab", Role.CONTRIBUTE, "one", expires, ("phone-*",), ("a", "b-?"), digest=DIGEST)
    assert found.tokens == {DIGEST: one}
    assert DIGEST not in repr(one)
    assert found.certificates == {"worker.example": Identity("default", Role.READ, "worker.example")}
    assert found.quotas == {"default": Quotas(), "lab": Quotas(runs=3, memory=2**31)}
    assert found.by_id == {"one": list(found.tokens.values()), "worker.example": list(found.certificates.values())}


def test_an_empty_file_lets_nobody_in() -> None:
    assert parse_access_list(b"").by_id == {}


TOKEN = f'[[tokens]]\nid = "one"\nsha256 = "{DIGEST}"\ntenant = "default"\nrole = "read"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x", "it is no TOML"),
        ("[users]", "the file: 'users' is not known; expected certificates, tenants, tokens"),
        ("tenants = 1", "'tenants' is no table"),
        ("[tenants.'A/b']", "tenant 'A/b'; expected 1 to 63 of a-z 0-9 -"),
        ("[tenants]\nlab = 3", "tenant 'lab' is no table"),
        (
            "[tenants.lab]\nquota = 1",
            "tenant 'lab': 'quota' is not known; expected bytes_per_second, disk, memory, par",
        ),
        ("[tenants.lab]\nruns = -1", "tenant 'lab': runs is -1; expected a number, 0 or more"),
        ("[tenants.lab]\nruns = true", "runs is True"),
        ("[tenants.lab]\nruns = 9223372036854775808", "runs is 9223372036854775808"),
        ("[tenants.lab]\nmemory = '99999999999 TiB'", "memory is '99999999999 TiB'"),
        (
            "[tenants.lab]\nmemory = '1GB'",
            "memory is '1GB'; expected a number of bytes, or one with KiB, MiB, GiB or TiB",
        ),
        ("[tokens]\nid = 'x'", "'tokens' is no list of tables; expected [[tokens]]"),
        ("tokens = [1]", "'tokens' is no list of tables"),
        ("[[tokens]]\ntenant = 'default'", "token 1 has no id"),
        (TOKEN.replace('"one"', '"o e"'), "token 1: id is 'o e'"),
        (TOKEN.replace('"one"', "1"), "token 1 has no id"),
        (TOKEN.replace(DIGEST, "gw_abc"), "token 'one': sha256 is no SHA-256"),
        (TOKEN.replace("default", "lab"), "token 'one': there is no tenant 'lab'"),
        (TOKEN.replace("read", "owner"), "role is 'owner'; expected one of observe, read, contribute, train, admin"),
        (TOKEN + "expires = 2030-01-01", "expires is 2030-01-01; expected a time with its zone"),
        (TOKEN + "expires = 2030-01-01T00:00:00", "expected a time with its zone"),
        (TOKEN + "expires = 5", "expected a time with its zone"),
        (TOKEN + "expires = 9999-12-31T23:59:59-23:59", "expected a time before the year 10000"),
        (TOKEN + "runs = 'a'", "runs is no list of patterns"),
        (TOKEN + "runs = []", "runs is no list of patterns; expected runs = ['a-*'], or no runs for all"),
        (TOKEN + "workers = ['a', 1]", "workers is no list of patterns"),
        (TOKEN + "secret = 'x'", "token 1: 'secret' is not known"),
        (TOKEN + TOKEN, "the same id of tokens stands there twice: one"),
        (TOKEN + TOKEN.replace("one", "two"), "the same sha256 of tokens stands there twice"),
        ("[[certificates]]\nsan = ''\ntenant = 'default'\nrole = 'read'", "san is empty"),
        ("[[certificates]]\nsan = 'a'\nrole = 'read'", "certificate 'a' has no tenant"),
        (
            2 * "[[certificates]]\nsan = 'a'\ntenant = 'default'\nrole = 'read'\n",
            "san of certificates stands there twice",
        ),
    ],
)
def test_what_is_malformed_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(BadAccessFile, match=re.escape(why)):
        parse_access_list(text.encode())


def test_no_refusal_shows_what_stands_where_a_digest_should() -> None:
    with pytest.raises(BadAccessFile) as caught:
        parse_access_list(TOKEN.replace(DIGEST, "gw_the-secret-itself").encode())
    assert "gw_" not in str(caught.value)


def test_bytes_that_are_no_text_and_files_that_are_too_large(tmp_path: Path) -> None:
    with pytest.raises(BadAccessFile, match="not UTF-8"):
        parse_access_list(b"\xff")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(BadAccessFile, match=f"more than {MAX_BYTES} bytes"):
        read_access_file(large)
    with pytest.raises(OSError, match="directory"):
        read_access_file(tmp_path)
