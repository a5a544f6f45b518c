"""A server in the test's own process, and clients of it whose messages go by lanes, or do not."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradwire.client import Run, Server, connect
from gradwire.server.rpc import codec, service
from gradwire.server.rpc.lanes import Offer
from gradwire.v1 import train_pb2
from tests.faults.conftest import hosted_in_order, proxy  # noqa: F401
from tests.faults.gated import GatedDevice
from tests.faults.hosted import HostedServer
from tests.lanes.proxy import LaneProxy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if sys.platform != "linux":
        for item in items:
            if "lanes" in item.nodeid:
                item.add_marker(pytest.mark.skip(reason="only Linux has lanes"))


@pytest.fixture
def device() -> GatedDevice:
    return GatedDevice()


@pytest.fixture
def hosted(device: GatedDevice, caplog: pytest.LogCaptureFixture) -> Iterator[HostedServer]:
    """A server that gives stalled peers up after a second. At its end nothing may be left, or logged as an error."""
    caplog.set_level(logging.INFO, "gradwire")
    with hosted_in_order(caplog, device, stall_timeout_seconds=1.0) as server:
        yield server


@pytest.fixture
def server(hosted: HostedServer) -> Iterator[Server]:
    """Its runs have lanes."""
    with connect(hosted.target, shared_memory=True) as connection:
        yield connection


@pytest.fixture
def plain(hosted: HostedServer) -> Iterator[Server]:
    """Its runs have none."""
    with connect(hosted.target, shared_memory=False) as connection:
        yield connection


@pytest.fixture
def between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LaneProxy]:
    """In the way of all lanes."""
    with LaneProxy(tmp_path / "between") as lane_proxy:

        def encode(offer: Offer) -> train_pb2.Lane:
            lane = codec.encode_lane(offer)
            lane_proxy.server, lane.path = lane.path, lane_proxy.path
            return lane

        monkeypatch.setattr(service, "encode_lane", encode)
        yield lane_proxy


def has_lane(run: Run) -> bool:
    """Whether the messages of the present stream go by a lane."""
    stream = run._attachment.stream
    return stream is not None and stream.lane is not None
