"""A server process for the bare client, and a run in it for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gradwire.v1 import service_pb2
from tests.contract.bare import BareClient, amsgrad, group
from tests.serving import ServerProcess


@pytest.fixture(scope="package")
def server_process() -> Iterator[ServerProcess]:
    """A server that all tests of the package share; give runs names of your own."""
    with ServerProcess(forked=False) as process:
        yield process


@pytest.fixture
def bare(server_process: ServerProcess) -> Iterator[BareClient]:
    with BareClient(server_process.target) as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest, bare: BareClient) -> Iterator[str]:
    """A run of three tensors in two groups: a [2], b [2, 2], c [] at 0..2, 2..6, 6..7; all zero."""
    chosen = f"contract-{abs(hash(request.node.nodeid))}"
    bare.create(chosen, [group(a=[2], b=[2, 2]), group(amsgrad(low=-1, high=1), c=[])], [0.0] * 7)
    yield chosen
    bare.call("DeleteRun", service_pb2.DeleteRunRequest(name=f"runs/{chosen}"))
