"""The door for who watches: who gets in, by which name, over TLS, and how little strangers can hold."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gradwire.server.app import Server
from gradwire.server.config import ConfigError, ServerConfig
from gradwire.server.web import door
from gradwire.server.web.collector import Scrape
from tests.faults.hosted import WAIT_SECONDS, HostedServer, eventually
from tests.integration.access import ROLES, AccessFile, secret_of
from tests.integration.certificates import Files
from tests.integration.watching import Scraped, ask

HTTP: dict[str, Any] = {"http": "127.0.0.1:0"}


@pytest.fixture
def hosted() -> Iterator[HostedServer]:
    with HostedServer(**HTTP) as server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "tls")


@pytest.fixture
def access(tmp_path: Path) -> AccessFile:
    file = AccessFile(tmp_path / "access.toml")
    for role in ROLES:
        file.add(role, "lab", role)
    return file


def context(files: Files, client: bool = False) -> ssl.SSLContext:
    """Of a caller that trusts the authority of ``files``. Args: client: whether it has a certificate itself."""
    made = ssl.create_default_context(cafile=files.path("ca.pem"))
    if client:
        made.load_cert_chain(files.path("client.pem"), files.path("client.key"))
    return made


def connected(hosted: HostedServer) -> socket.socket:
    host, _, port = hosted.server.http_address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_SECONDS)


# --- what there is ----------------------------------------------------------------------------------------------------


def test_there_is_no_such_door_unless_it_is_wanted() -> None:
    with HostedServer() as hosted:
        assert hosted.server.http_address == ""


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_how_it_is_is_told_to_anybody(access: AccessFile, path: str) -> None:
    with HostedServer(**HTTP, access=str(access.path)) as hosted:
        assert ask(hosted, path)[:2] == (200, "ok\n")


def test_what_is_not_there_and_what_cannot_be_done(hosted: HostedServer) -> None:
    assert ask(hosted, "/nothing").status == 404
    assert ask(hosted, "/metrics/../metrics").status == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
        answer = ask(hosted, method=method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    head = ask(hosted, method="HEAD")
    assert (head.status, head.text) == (200, "")
    assert int(head.headers["Content-Length"]) > 1000


def test_answers_say_nothing_of_what_made_them_and_are_no_scripts(hosted: HostedServer) -> None:
    for path in ("/metrics", "/healthz", "/nothing"):
        headers = ask(hosted, path).headers
        assert headers["Server"] == "gradwire"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"


def test_noise_is_refused_in_a_line_and_tells_nothing(hosted: HostedServer) -> None:
    with connected(hosted) as connection:
        connection.sendall(b"\x16\x03\x01 noise \r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    assert b"Traceback" not in answer
    assert ask(hosted).status == 200


def test_strangers_fill_no_log_and_a_fault_of_ours_is_in_it(
    hosted: HostedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for words in (b"noise\r\n\r\n", b"GET / HTTP/1.1\r\nHost: \x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with connected(hosted) as connection:
            connection.sendall(words)
            assert b" 400 " in b"".join(iter(lambda: connection.recv(4096), b"")).splitlines()[0]
    assert not caplog.records

    def fail(scrape: Scrape) -> None:
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(Scrape, "collect", fail)
        answer = ask(hosted)
    assert (answer.status, answer.text) == (500, "unexpected error; the server's log says more\n")
    assert [record.message for record in caplog.records] == ["unexpected error in /metrics"]
    assert ask(hosted).status == 200


def test_ready_says_why_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str]] = []

    async def start() -> None:
        server = Server(ServerConfig(listen=("127.0.0.1:0",), device="cpu", **HTTP))
        loop = asyncio.get_running_loop()

        async def look() -> None:
            host, _, port = server.http_address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            seen.append((int(head.split()[1]), body.decode()))

        monkeypatch.setattr(server, "_warm_up", lambda: asyncio.run_coroutine_threadsafe(look(), loop).result(20))
        drain = server.servicer.drain

        async def draining(timeout_seconds: float) -> None:
            await look()
            await drain(timeout_seconds)

        monkeypatch.setattr(server.servicer, "drain", draining)
        await server.start()
        await look()
        await server.drain()

    asyncio.run(start())
    assert seen == [(503, "starting\n"), (200, "ok\n"), (503, "draining\n")]


def test_a_port_in_use_is_an_error(hosted: HostedServer) -> None:
    address = hosted.server.http_address
    with pytest.raises(ConfigError, match=f"cannot listen on {address}: Address already in use"):
        HostedServer(http=address).close()


def test_all_addresses_of_a_name_have_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = socket.getaddrinfo
    names = ("127.0.0.1", "127.0.0.2")

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> list[Any]:
        return [one for name in (names if host == "watched" else [host]) for one in found(name, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    listeners, port = door._listeners("watched", 0, "watched:0")
    with ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
        assert [listener.getsockname() for listener in listeners] == [(name, port) for name in names]


# --- by which name ----------------------------------------------------------------------------------------------------


def test_a_page_whose_name_leads_here_reads_nothing() -> None:
    """What a browser sends for such a page has the page's own name in it."""
    with HostedServer(**HTTP, http_name=("watch.example.org",)) as hosted:
        for path in ("/metrics", "/healthz", "/nothing"):
            answer = ask(hosted, path, headers={"Host": "evil.example.org:9464"})
            assert answer.status == 421
            assert "gradwire_" not in answer.text
        for name in ("localhost", "watch.example.org:80", "10.1.2.3", "[::1]:9464"):
            assert ask(hosted, headers={"Host": name}).status == 200


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: evil.example.org\r\n"])
def test_one_name_is_expected(hosted: HostedServer, hosts: bytes) -> None:
    with connected(hosted) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n" + hosts + b"\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b" 400 " in answer.splitlines()[0]
    assert b"gradwire_" not in answer


# --- who --------------------------------------------------------------------------------------------------------------


def test_metrics_are_for_those_who_may_observe(access: AccessFile, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    with HostedServer(**HTTP, access=str(access.path), audit_log=str(audit)) as hosted:
        for role in ROLES:
            assert ask(hosted, token=secret_of(role)).status == 200
        nobody = ask(hosted)
        assert (nobody.status, nobody.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert ask(hosted, token="gw_wrong").status == 401
        assert ask(hosted, headers={"Authorization": "Basic YTpi"}).status == 401
        access.remove("observe")
        eventually(lambda: ask(hosted, token=secret_of("observe")).status == 401, "it has been revoked")
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert {line["action"] for line in lines} == {"Metrics"}
    assert [(line["id"], line["outcome"]) for line in lines[:5]] == [(role, "ok") for role in ROLES]
    assert (lines[5]["id"], lines[5]["reason"]) == ("", "UNAUTHENTICATED")
    assert lines[5]["peer"].startswith("ipv4:127.0.0.1:")
    assert not any(secret_of(role) in audit.read_text() for role in ROLES)


def test_two_tokens_are_none(access: AccessFile) -> None:
    with HostedServer(**HTTP, access=str(access.path)) as hosted, connected(hosted) as connection:
        token = f"Authorization: Bearer {secret_of('observe')}\r\n".encode()
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + token + token + b"\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b" 40" in answer.splitlines()[0]
    assert b"gradwire_" not in answer


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_over_tls_and_not_without(files: Files) -> None:
    with HostedServer(**HTTP, **files.server) as hosted:
        found = Scraped(hosted, context=context(files))
        assert found("gradwire_certificate_expiry_timestamp_seconds") > 1.7e9
        assert found("gradwire_certificate_refusals_total") == 0
        assert found("gradwire_unused_handshakes_total") >= 0
        with connected(hosted) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"gradwire_" not in b"".join(iter(lambda: connection.recv(4096), b""))
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(hosted, context=ssl.create_default_context())


def test_a_certificate_that_was_renewed_is_shown_from_then_on(files: Files) -> None:
    def number(hosted: HostedServer) -> object:
        host, _, port = hosted.server.http_address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=WAIT_SECONDS) as plain,
            context(files).wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            certificate = connection.getpeercert()
            assert certificate is not None
            return certificate["serialNumber"]

    with HostedServer(**HTTP, **files.server) as hosted:
        before = number(hosted)
        assert number(hosted) == before
        files.renew("server")
        assert number(hosted) != before
        (files.folder / "server.key").write_bytes(b"no key")
        after = number(hosted)
        assert after not in (before, None)
        assert Scraped(hosted, context=context(files))("gradwire_certificate_refusals_total") == 1


def test_who_needs_a_certificate_for_the_service_needs_one_here(files: Files) -> None:
    with HostedServer(**HTTP, **files.mutual) as hosted:
        assert ask(hosted, context=context(files, client=True)).status == 200
        for path in ("/metrics", "/healthz"):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                ask(hosted, path, context=context(files))


def test_a_certificate_says_who_comes(files: Files, access: AccessFile) -> None:
    access.add_certificate("worker", "lab", "observe")
    with HostedServer(**HTTP, **files.mutual, access=str(access.path)) as hosted:
        assert ask(hosted, context=context(files, client=True)).status == 200
        files.renew("client", ("stranger",))
        assert ask(hosted, context=context(files, client=True)).status == 401
        assert ask(hosted, context=context(files, client=True), token=secret_of("observe")).status == 200


# --- strangers --------------------------------------------------------------------------------------------------------


def test_silent_connections_have_their_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "CONNECTION_SECONDS", 0.2)
    with HostedServer(**HTTP) as hosted:
        for words in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"):
            with connected(hosted) as connection:
                connection.sendall(words)
                assert connection.recv(1) == b"", "closed"


def test_more_than_it_takes_wait_until_others_have_gone(monkeypatch: pytest.MonkeyPatch, files: Files) -> None:
    monkeypatch.setattr(door, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(door, "CONNECTION_SECONDS", 1.0)
    with HostedServer(**HTTP, **files.server) as hosted, ExitStack() as stack:
        made = hosted.server._door
        assert made is not None
        silent = [stack.enter_context(connected(hosted)) for _ in range(10)]
        eventually(lambda: hosted.call(lambda: len(made._connections)) == 4, "as many as it takes are there")
        assert ask(hosted, context=context(files)).status == 200  # it waits for those before it
        assert all(one.recv(1) == b"" for one in silent)


def test_one_connection_is_one_request(hosted: HostedServer) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(hosted) as connection:
        connection.sendall(2 * request)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.count(b"HTTP/1.1 200") == 1
    made = hosted.server._door
    assert made is not None
    eventually(lambda: hosted.call(lambda: not made._connections), "its place is free")


def test_whoever_leaves_before_the_answer_leaves_nothing_behind(hosted: HostedServer) -> None:
    for _ in range(20):
        with connected(hosted) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    made = hosted.server._door
    assert made is not None
    eventually(lambda: hosted.call(lambda: not made._connections), "their places are free")
    assert ask(hosted).status == 200
