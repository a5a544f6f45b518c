"""What a server can be told, and what it refuses to be told."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from gradwire.server.config import ConfigError, ServerConfig, is_local
from gradwire.server.limits import available_memory_bytes
from gradwire.wire.layout import MAX_ELEMENTS

LOCAL = [
    "127.0.0.1:50051",
    "127.255.0.9:1",
    "localhost:0",
    "[::1]:50051",
    "[0:0:0:0:0:0:0:1]:65535",
    "unix:/tmp/socket",
    "unix:relative",
]
REACHABLE = [
    "0.0.0.0:50051",
    "[::]:50051",
    "192.168.1.5:50051",
    "[fe80::1]:50051",
    "example.org:50051",
    "localhost.example.org:50051",
    "127.0.0.1.example.org:50051",
    "my-host:50051",
    "127.1:50051",
    "*:50051",
]
MALFORMED = [
    "",
    "127.0.0.1",
    "50051",
    ":50051",
    "127.0.0.1:",
    "127.0.0.1:http",
    "127.0.0.1:-1",
    "127.0.0.1:65536",
    "127.0.0.1:٣",
    "unix:",
    "::1:50051",
    "::1",
    "[::1]",
    "http://127.0.0.1",
    "dns:///127.0.0.1:50051",
]


def test_defaults_are_the_documented_ones() -> None:
    made = ServerConfig()
    assert made.listen == ("127.0.0.1:50051",)
    assert (made.insecure, made.device, made.reflection, made.log_format) == (False, "auto", False, "text")
    assert made.max_parameters == MAX_ELEMENTS
    assert (made.stall_timeout_seconds, made.drain_timeout_seconds) == (60, 30)


@pytest.mark.parametrize("address", [address for address in LOCAL if not address.startswith("unix:")])
def test_the_door_for_who_watches_needs_no_permission_on_loopback(address: str) -> None:
    assert ServerConfig(http=address).http == address


@pytest.mark.parametrize("address", REACHABLE)
def test_promise_6_that_door_is_as_closed_as_the_service(address: str) -> None:
    with pytest.raises(ConfigError, match="can be reached from other machines") as caught:
        ServerConfig(http=address)
    assert repr(address) in str(caught.value)
    with pytest.raises(ConfigError, match="does not encrypt"):
        ServerConfig(http=address, access="tokens.toml")
    with pytest.raises(ConfigError, match="does not ask who comes"):
        ServerConfig(http=address, tls_cert="cert.pem", tls_key="key.pem")
    ServerConfig(http=address, tls_cert="cert.pem", tls_key="key.pem", access="tokens.toml")
    ServerConfig(http=address, insecure=True)


@pytest.mark.parametrize("address", [address for address in MALFORMED if address and address != "unix:"])
def test_that_door_has_an_address(address: str) -> None:
    with pytest.raises(ConfigError, match="is no address; expected"):
        ServerConfig(http=address)


def test_that_door_is_no_socket_of_unix_and_the_rest_is_nothing_without_it() -> None:
    with pytest.raises(ConfigError, match="http is 'unix:/tmp/socket'; expected HOST:PORT"):
        ServerConfig(http="unix:/tmp/socket")
    with pytest.raises(ConfigError, match="metrics_per_run is True, without --http"):
        ServerConfig(metrics_per_run=True)
    with pytest.raises(ConfigError, match=r"http_name is \('watch',\), without --http"):
        ServerConfig(http_name=("watch",))


def test_memory_limit_defaults_to_a_share_of_what_there_is() -> None:
    assert ServerConfig().max_memory == available_memory_bytes() * 3 // 4
    assert ServerConfig(max_memory=5).max_memory == 5


@pytest.mark.parametrize("address", LOCAL)
def test_loopback_needs_no_permission(address: str) -> None:
    assert is_local(address)
    assert ServerConfig(listen=(address,)).listen == (address,)


@pytest.mark.parametrize("address", REACHABLE)
def test_promise_6_closed_by_default(address: str) -> None:
    """Nothing but loopback is served unless told so, and the refusal says why and what to do."""
    assert not is_local(address)
    with pytest.raises(ConfigError, match="can be reached from other machines") as caught:
        ServerConfig(listen=(address,))
    assert repr(address) in str(caught.value)
    assert "neither encrypts nor asks who comes" in str(caught.value)
    assert "--tls-client-ca" in str(caught.value)
    assert "--insecure" in str(caught.value)
    assert ServerConfig(listen=(address,), insecure=True).listen == (address,)


def test_one_reachable_address_among_local_ones_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"refusing to listen on '0\.0\.0\.0:1'"):
        ServerConfig(listen=("127.0.0.1:0", "unix:x", "0.0.0.0:1"))


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("address", MALFORMED)
def test_malformed_address_is_refused_whether_insecure_or_not(address: str, insecure: bool) -> None:
    with pytest.raises(ConfigError, match="expected"):
        ServerConfig(listen=(address,), insecure=insecure)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"listen": ()}, "no address to listen on"),
        ({"log_format": "xml"}, "log format is 'xml'; expected 'text' or 'json'"),
        ({"threads": -1}, "threads is -1; expected 0 or more"),
        ({"max_memory": -1}, "max_memory is -1; expected 0 or more"),
        ({"worker_threads": 0}, "worker_threads is 0; expected 1 or more"),
        ({"max_parameters": 0}, "max_parameters is 0; expected 1 or more"),
        ({"max_result": -5}, "max_result is -5; expected 1 or more"),
        *(
            ({name: value}, f"{name} is {re.escape(str(value))}; expected a finite number above 0, at most 1000000")
            for name in ("stall_timeout_seconds", "keepalive_seconds", "snapshot_interval_seconds")
            for value in (0, -1.5, math.nan, math.inf, 1e300)
        ),
    ],
    ids=str,
)
def test_setting_out_of_range_is_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        ServerConfig(**settings)
