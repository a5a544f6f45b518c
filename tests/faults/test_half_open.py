"""Connections that begin and do not go on: they are closed, and those whom the server knows are served meanwhile."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from gradwire.client import AMSGrad, connect
from tests.faults.hosted import WAIT_SECONDS, HostedServer
from tests.faults.raw_http2 import PREFACE, SETTINGS, frame
from tests.integration.certificates import Files

HALF_A_HELLO = bytes.fromhex("16030102000100") + b"\x01\xfc\x03\x03" + bytes(100)
"""A record of 512 bytes is announced, a ClientHello, and a hundred come."""

CONNECTIONS = 50
HANDSHAKE_SECONDS = 1.0


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "tls")


@pytest.fixture
def hosted(files: Files, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostedServer]:
    monkeypatch.setattr("gradwire.server.app.HANDSHAKE_SECONDS", HANDSHAKE_SECONDS)
    with HostedServer(**files.mutual) as server:
        yield server


@pytest.mark.parametrize(
    "said",
    [b"", HALF_A_HELLO, b"\x16", PREFACE + frame(SETTINGS, 0, 0), b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 20_000],
    ids=["nothing", "half a hello", "a byte", "http2", "http1", "noise"],
)
def test_handshakes_that_are_not_finished(hosted: HostedServer, files: Files, said: bytes) -> None:
    host, _, port = hosted.target.rpartition(":")
    with connect(hosted.target, tls=files.known) as server, ExitStack() as opened:
        run = server.create_run("x", {"w": np.zeros(2)}, AMSGrad())
        began = time.monotonic()
        silent = [
            opened.enter_context(socket.create_connection((host, int(port)), WAIT_SECONDS)) for _ in range(CONNECTIONS)
        ]
        for connection in silent:
            connection.sendall(said)
        assert run.step({"w": np.ones(2)}).step == 1
        with connect(hosted.target, tls=files.known) as late:  # there is room for others
            assert late.attach("x", takeover=True).step({"w": np.ones(2)}).step == 2
        for connection in silent:
            assert ended(connection)
        if said in (b"", HALF_A_HELLO):
            assert time.monotonic() - began >= HANDSHAKE_SECONDS / 2  # it has been waited for


def ended(connection: socket.socket) -> bool:
    """Whether the server closes it; TimeoutError where it does not. It may complain before that."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionError:
        pass
    return True
