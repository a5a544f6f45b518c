"""Who watches a server, as Prometheus does: plain HTTP, and the library's own parser."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gradwire.server.web import listing, streams
from tests.faults.hosted import WAIT_SECONDS, HostedServer


@contextmanager
def hosted_page() -> Iterator[HostedServer]:
    """A server whose page is newer than elsewhere, and tells news sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "TICK_SECONDS", 0.1)
        patch.setattr(streams, "_SHARE", 1.0)
        patch.setattr(listing, "_FRESH_SECONDS", 0.0)
        with HostedServer(http="127.0.0.1:0") as server:
            yield server


class Answer(NamedTuple):
    status: int
    text: str
    headers: Mapping[str, str]


def ask(
    hosted: HostedServer,
    path: str = "/metrics",
    *,
    token: str | None = None,
    method: str = "GET",
    context: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """The answer of the door of ``hosted``.

    Args:
        token: what the caller says that it is; None: nothing.
        context: of TLS; None: it is not spoken.
    """
    host, _, port = hosted.server.http_address.rpartition(":")
    connection = (
        http.client.HTTPConnection(host, int(port), timeout=WAIT_SECONDS)
        if context is None
        else http.client.HTTPSConnection(host, int(port), timeout=WAIT_SECONDS, context=context)
    )
    sent = {"Authorization": f"Bearer {token}"} if token is not None else {}
    try:
        connection.request(method, path, headers={**sent, **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, response.read().decode(), dict(response.getheaders()))
    finally:
        connection.close()


def families(text: str) -> dict[str, Metric]:
    """What a scrape holds, by name."""
    return {family.name: family for family in text_string_to_metric_families(text)}


class Scraped:
    """One scrape.

    Args:
        arguments: of `ask`.
    """

    def __init__(self, hosted: HostedServer, token: str | None = None, context: ssl.SSLContext | None = None) -> None:
        answer = ask(hosted, token=token, context=context)
        assert answer.status == 200, answer.text
        self.families = families(answer.text)
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, sample: str, **labels: str) -> float:
        """The value of one sample. Raises KeyError where there is none."""
        return self._values[sample, frozenset(labels.items())]

    def labels(self, sample: str, label: str) -> set[str]:
        """The values that a label has."""
        return {dict(labels)[label] for name, labels in self._values if name == sample}
