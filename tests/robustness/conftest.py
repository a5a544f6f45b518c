"""What all episodes share: the library, the process that forks servers, the server that replays histories."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradwire.client import connect
from tests.robustness.disk import NoCompiler, build_library
from tests.robustness.model import Reference
from tests.robustness.servers import Zygote
from tests.serving import ServerProcess


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build_library(tmp_path_factory.mktemp("library"))
    except NoCompiler as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def zygote(library: Path) -> Iterator[Zygote]:
    with Zygote(library) as process:
        yield process


@pytest.fixture(scope="session")
def reference() -> Iterator[Reference]:
    with ServerProcess("--device", "cpu") as process, connect(process.target) as server:
        yield Reference(server)
