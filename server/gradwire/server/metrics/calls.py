"""Calls by method: how many were begun, how they ended, how long they took. Named as other gRPC servers name them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from gradwire.server.metrics.histogram import CALL_SECONDS, Histogram

_KINDS = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}


class Ending:
    """How a call ends: until something else is said, its caller has gone."""

    __slots__ = ("code",)

    def __init__(self) -> None:
        self.code = "CANCELLED"


class MethodCounters:
    """Of one method.

    Args:
        kind: ``unary``, ``client_stream``, ``server_stream`` or ``bidi_stream``.
    """

    def __init__(self, service: str, name: str, kind: str) -> None:
        self.service = service
        self.name = name
        self.kind = kind
        self.started = 0
        self.handled: dict[str, int] = {"OK": 0}
        """By the name of the status code."""
        self.seconds = Histogram(CALL_SECONDS)

    @contextmanager
    def counting(self) -> Iterator[Ending]:
        """Counts a call from its beginning to its end, whose code the body says."""
        self.started += 1
        began, ending = perf_counter(), Ending()
        try:
            yield ending
        finally:
            self.seconds.observe(perf_counter() - began)
            self.handled[ending.code] = self.handled.get(ending.code, 0) + 1


class CallCounters:
    """Of all methods of one server."""

    def __init__(self) -> None:
        self.methods: list[MethodCounters] = []

    def method(self, service: str, name: str, *, client_streams: bool, server_streams: bool) -> MethodCounters:
        """For a method that is about to be served. Args: service: its full name."""
        made = MethodCounters(service, name, _KINDS[client_streams, server_streams])
        self.methods.append(made)
        return made
