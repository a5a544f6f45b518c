"""Which targets lead to this host, and which proxies stand before the others."""

from __future__ import annotations

import os
import socket

import pytest

from gradwire.wire.hosts import host_and_port, is_local, is_loopback, is_this_host
from gradwire.wire.proxies import proxy_to
from gradwire.wire.service import local_options

LOOPBACK = (
    "localhost:1",
    "LOCALHOST:1",
    "LocalHost.:1",
    "dns:///localhost:1",
    "worker.localhost:1",
    "127.0.0.1:1",
    "127.9.8.7:1",
    "127.1:1",
    "0.0.0.0:1",
    "[::1]:1",
    "[0:0:0:0:0:0:0:1]:1",
    "[::]:1",
    "[::ffff:127.0.0.1]:1",
    "ipv4:127.0.0.1:1",
    "ipv6:%5B::1%5D:1",
    "unix:/tmp/socket",
    "unix-abstract:name",
)
ONLY_A_RESOLVER_KNOWS = ("worker.localhost:1", "127.1:1")
ELSEWHERE = ("192.0.2.1:1", "[2001:db8::1]:1", "ipv4:192.0.2.1:1", "127.example.invalid:1", "localhost.invalid:1")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No proxies but those that a test sets, and a resolver that asks nobody."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    resolve = socket.getaddrinfo
    names = {"here": "127.0.1.1", "there": "192.0.2.1"}

    def known(host: str, port: int, type: int = 0) -> object:
        try:
            return resolve(names.get(host, host), port, type=type, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            raise socket.gaierror(socket.EAI_NONAME, "unknown") from None

    monkeypatch.setattr(socket, "getaddrinfo", known)
    return monkeypatch


@pytest.mark.parametrize("target", LOOPBACK)
def test_loopback_by_any_name(target: str) -> None:
    assert is_local(target)
    assert is_this_host(target)
    assert is_loopback(target) == (target not in ONLY_A_RESOLVER_KNOWS)


@pytest.mark.parametrize("target", ELSEWHERE)
def test_other_hosts(target: str) -> None:
    assert not is_loopback(target)
    assert not is_local(target)
    assert not is_this_host(target)


def test_a_name_that_resolves_to_an_interface_of_this_host_is_this_host() -> None:
    assert is_this_host("here:50051")
    assert not is_local("here:50051"), "the server's peer has another address"
    assert not is_this_host("there:50051")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("host:50051", ("host", "50051")),
        ("[::1]:50051", ("::1", "50051")),
        ("ipv6:%5B::1%5D:7", ("::1", "7")),
        ("::1", ("::1", "")),
        ("[::1]", ("::1", "")),
        ("host", ("host", "")),
    ],
)
def test_host_and_port(target: str, expected: tuple[str, str]) -> None:
    assert host_and_port(target) == expected


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
@pytest.mark.parametrize("target", [*LOOPBACK, "here:1"])
def test_no_proxy_stands_before_this_host(environment: pytest.MonkeyPatch, variable: str, target: str) -> None:
    environment.setenv(variable, "http://proxy.invalid:3128")
    assert local_options(target) == [("grpc.enable_http_proxy", 0)]
    assert proxy_to(target) is None


def test_other_hosts_are_reached_through_the_proxy_that_grpc_takes(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", "http://second.invalid:1")
    environment.setenv("https_proxy", "http://first.invalid:1")
    assert local_options("there:1") == []
    proxy = proxy_to("there:1")
    assert proxy is not None
    assert (proxy.variable, proxy.shown, proxy.host) == ("https_proxy", "http://first.invalid:1", "there")
    environment.setenv("no_proxy", "example.org, THERE")
    assert proxy_to("there:1") is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:secret@proxy:1", "http://me:***@proxy:1"),
        ("me:secret@proxy:1", "me:***@proxy:1"),
        ("http://me:se//cr@et@proxy:1", "http://me:***@proxy:1"),
        ("http://me@proxy:1", "http://me@proxy:1"),
        ("http://proxy:1", "http://proxy:1"),
    ],
)
def test_a_proxy_is_shown_without_its_password(environment: pytest.MonkeyPatch, url: str, shown: str) -> None:
    environment.setenv("http_proxy", url)
    proxy = proxy_to("there:1")
    assert proxy is not None
    assert proxy.shown == shown
