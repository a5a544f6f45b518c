"""What is begun and never used is counted, once it is old enough, and said once a minute."""

from __future__ import annotations

import pytest

from gradwire.server.rpc import handshakes
from gradwire.server.rpc.handshakes import SETTLED_SECONDS, Handshakes


class Clocked:
    def __init__(self) -> None:
        self.now = 100.0
        self.counted = Handshakes(lambda: self.now)

    def unused_later(self) -> int:
        self.now += SETTLED_SECONDS
        return self.counted.unused


def test_what_is_used_does_not_count() -> None:
    clocked = Clocked()
    for port in range(5):
        clocked.counted.begun()
        for _ in range(3):
            clocked.counted.called(f"ipv4:127.0.0.1:{port}")
    assert clocked.unused_later() == 0


def test_what_is_young_does_not_count_yet() -> None:
    clocked = Clocked()
    clocked.counted.begun()
    clocked.now += SETTLED_SECONDS / 2
    clocked.counted.begun()
    assert clocked.counted.unused == 0
    clocked.now += SETTLED_SECONDS / 2
    assert clocked.counted.unused == 1
    assert clocked.unused_later() == 2


def test_it_only_rises() -> None:
    clocked = Clocked()
    clocked.counted.begun()
    assert clocked.unused_later() == 1
    clocked.counted.called("ipv4:127.0.0.1:1")  # somebody who took long
    assert clocked.counted.unused == 1
    clocked.counted.begun()
    assert clocked.unused_later() == 2  # and it hides no other


def test_unix_sockets_have_no_handshakes() -> None:
    clocked = Clocked()
    clocked.counted.called("unix:")
    clocked.counted.begun()
    assert clocked.unused_later() == 1


def test_addresses_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "_KNOWN", 3)
    clocked = Clocked()
    for _ in range(6):
        clocked.counted.begun()
    for port in (1, 2, 3, 1, 4, 1, 2):  # 2 has been forgotten: it is taken for a new connection
        clocked.counted.called(f"ipv4:127.0.0.1:{port}")
    assert clocked.unused_later() == 1


def test_it_is_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clocked = Clocked()
    for _ in range(3):
        clocked.counted.begun()
    clocked.now += SETTLED_SECONDS
    clocked.counted.say()
    assert not caplog.records
    clocked.now += 60
    for _ in range(2):
        clocked.counted.say()
    (record,) = caplog.records
    assert record.getMessage().startswith("3 TLS connections were begun and never used")
