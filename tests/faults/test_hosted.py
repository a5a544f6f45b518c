"""The hosted server is harmless to the tests that come after it."""

from __future__ import annotations

import gc

import pytest

from gradwire.server.app import Server
from tests.faults.hosted import HostedServer


def test_a_failed_start_leaves_nothing_that_fails_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC ended its half of such a server when it was collected, on a loop that was closed."""

    def fail(server: Server) -> None:
        raise KeyError("no kernel")

    monkeypatch.setattr(Server, "_warm_up", fail)
    with pytest.raises(KeyError):
        HostedServer()
    gc.collect()
