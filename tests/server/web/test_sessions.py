"""A token becomes a session: for how long, how many, and that it is over when the token is."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request

from gradwire.server.access.gate import Gate
from gradwire.server.access.identity import Identity
from gradwire.server.web import sessions
from gradwire.server.web.sessions import SESSION_SECONDS, Sessions, cookie, cookie_name, word_of
from tests.integration.access import AccessFile, secret_of
from tests.server.clock import Clock


@pytest.fixture
def access(tmp_path: Path) -> AccessFile:
    file = AccessFile(tmp_path / "access.toml")
    file.add("reader", "lab", "read")
    file.add("other", "other", "admin")
    return file


@pytest.fixture
def gate(access: AccessFile) -> Gate:
    return Gate(access.path)


def identity(gate: Gate, name: str = "reader") -> Identity:
    return gate.identify(f"Bearer {secret_of(name)}")


def test_a_word_is_known_until_it_is_forgotten_and_none_is_like_another(gate: Gate) -> None:
    known = Sessions(gate)
    words = [known.begin(identity(gate)) for _ in range(3)]
    assert len(set(words)) == 3
    assert all(len(word) >= 43 for word in words), "256 bits"
    assert known.find(words[0]) == identity(gate)
    known.end(words[0])
    assert known.find(words[0]) is None
    assert known.find(words[1]) == identity(gate)
    assert known.find("") is None
    assert known.find(secret_of("reader")) is None, "a token is no session"


def test_it_lasts_its_time_however_often_it_is_used(gate: Gate) -> None:
    clock = Clock()
    known = Sessions(gate, clock.monotonic)
    word = known.begin(identity(gate))
    clock.now += SESSION_SECONDS - 1
    assert known.find(word) is not None
    clock.now += 1
    assert known.find(word) is None
    assert len(known) == 0


def test_it_is_over_with_its_token(gate: Gate, access: AccessFile) -> None:
    known = Sessions(gate)
    word, other = known.begin(identity(gate)), known.begin(identity(gate, "other"))
    access.remove("reader")
    assert gate.look()
    assert known.find(word) is None
    assert known.find(other) is not None


def test_one_token_makes_so_many_and_leaves_those_of_others(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS_OF_ONE", 2)
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 3)
    known = Sessions(gate)
    other = known.begin(identity(gate, "other"))
    words = [known.begin(identity(gate)) for _ in range(4)]
    assert [known.find(word) is not None for word in words] == [False, False, True, True]
    assert known.find(other) is not None
    assert len(known) == 3


def test_the_cookie_is_for_this_server_alone() -> None:
    request = make_mocked_request("GET", "/", headers={"Host": "localhost:9464", "Cookie": "gradwire-9464=word"})
    assert cookie(request, "word") == (
        f"gradwire-9464=word; Path=/; HttpOnly; SameSite=Strict; Max-Age={SESSION_SECONDS:.0f}"
    )
    assert word_of(request) == "word"
    assert "Max-Age=0" in cookie(request, "")
    neighbour = make_mocked_request("GET", "/", headers={"Host": "localhost:9465", "Cookie": "gradwire-9464=word"})
    assert word_of(neighbour) == ""
    for host in ("[::1]", "example.org", "example.org:\u0663"):
        assert cookie_name(make_mocked_request("GET", "/", headers={"Host": host})) == "gradwire"
