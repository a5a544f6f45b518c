"""Each call is begun once and ends once, with one status."""

from __future__ import annotations

import asyncio

import pytest

from gradwire.server.metrics.calls import CallCounters


def test_a_call_ends_with_what_its_body_says_and_else_its_caller_has_gone() -> None:
    calls = CallCounters()
    method = calls.method("a.Service", "Method", client_streams=False, server_streams=False)
    with method.counting() as ending:
        assert (method.started, sum(method.seconds.counts)) == (1, 0)
        ending.code = "NOT_FOUND"
    with method.counting() as ending:
        ending.code = "OK"
    with pytest.raises(asyncio.CancelledError), method.counting():
        raise asyncio.CancelledError
    assert method.handled == {"OK": 1, "NOT_FOUND": 1, "CANCELLED": 1}
    assert (method.started, sum(method.seconds.counts)) == (3, 3)


def test_kinds_are_named_as_elsewhere() -> None:
    calls = CallCounters()
    kinds = [
        calls.method("s", "m", client_streams=client, server_streams=server).kind
        for client in (False, True)
        for server in (False, True)
    ]
    assert kinds == ["unary", "server_stream", "client_stream", "bidi_stream"]
    assert len(calls.methods) == 4
