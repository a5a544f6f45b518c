"""One server process shared by all tests that do not harm it, and a connection to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gradwire.client import Server, connect
from tests.serving import ServerProcess


@pytest.fixture(scope="session")
def server_process() -> Iterator[ServerProcess]:
    """A server that all tests share; give runs names of your own."""
    with ServerProcess() as process:
        yield process


@pytest.fixture
def server(server_process: ServerProcess) -> Iterator[Server]:
    """A connection of this test's own to the shared server."""
    with connect(server_process.target) as connection:
        yield connection
