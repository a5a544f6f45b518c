"""By which names a server may be called, where no certificate says it."""

from __future__ import annotations

import pytest

from gradwire.server.web.hosts import OwnNames

NAMES = OwnNames(["Watch.Example.org", "gradwire"])


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:9464",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:9464",
        "10.0.0.7:80",
        "[::1]",
        "[::1]:9464",
        "watch.example.org:443",
        "watch.example.ORG.",
        "gradwire:9464",
    ],
)
def test_its_own_names_and_any_address(host: str) -> None:
    assert NAMES.has(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example.org",
        "localhost.evil.example.org",
        "127.0.0.1.evil.example.org:9464",
        "example.org",
        "localhost:",
        "localhost:port",
        "localhost:1:2",
        "::1",
        "[::1",
        "[::1]x",
        "[localhost]:1",
        "user@localhost",
        "localhost:٣",
    ],
)
def test_nothing_else(host: str) -> None:
    assert not NAMES.has(host)
