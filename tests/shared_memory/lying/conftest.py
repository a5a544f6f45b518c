"""A server whose device can be held up, and the contract alone to speak to it: clients change what the server reads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gradwire.v1 import service_pb2_grpc
from tests.faults.bare import Stub, channel_to
from tests.faults.conftest import check_nothing_is_left
from tests.faults.gated import GatedDevice
from tests.faults.hosted import HostedServer


@pytest.fixture
def device() -> GatedDevice:
    return GatedDevice()


@pytest.fixture
def hosted(device: GatedDevice) -> Iterator[HostedServer]:
    with HostedServer(device) as server:
        yield server
        check_nothing_is_left(server)


@pytest.fixture
def stub(hosted: HostedServer) -> Iterator[Stub]:
    with channel_to(hosted.target) as channel:
        yield service_pb2_grpc.OptimizerServiceStub(channel)
