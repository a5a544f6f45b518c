"""Promise: a stream that has moved to a lane is its caller's: what ends, or holds up, that caller does so there."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from gradwire.client import AMSGrad, PermissionRevoked, Run, connect
from gradwire.server.access.pacing import Pace
from gradwire.server.rpc.stream_guard import StreamGuard
from tests.faults.bare import refusal_of
from tests.faults.hosted import HostedServer, InBackground, eventually
from tests.integration.access import AccessFile, secret_of, two_tenants
from tests.lanes.conftest import has_lane

VALUES = {"w": np.ones(3, np.float32)}


@pytest.fixture
def access(tmp_path: Path) -> AccessFile:
    return two_tenants(tmp_path)


@pytest.fixture
def hosted(access: AccessFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostedServer]:
    """Only beside a unix socket are there lanes where callers are told apart."""
    monkeypatch.setattr("gradwire.server.rpc.calls.LOOK_SECONDS", 0.02)
    with HostedServer(access=str(access.path), listen=(f"unix:{tmp_path}/socket",)) as server:
        yield server


@contextmanager
def run_of(hosted: HostedServer, tenant: str) -> Iterator[Run]:
    with connect(hosted.target, token=secret_of(tenant)) as server:
        run = server.create_run("x", VALUES, AMSGrad())
        assert run.step(VALUES).step == 1
        assert has_lane(run)
        yield run


def steps_of(hosted: HostedServer, tenant: str) -> int:
    return hosted.run_of_inside(f"tenants/{tenant}/runs/x").step


def test_an_idle_one_ends_when_its_token_is_revoked(hosted: HostedServer, access: AccessFile) -> None:
    with run_of(hosted, "lab") as run, run_of(hosted, "other") as other:
        stream = run._attachment.stream
        assert stream is not None
        with InBackground(stream.receive) as waiting:
            access.remove("lab")
            with pytest.raises(grpc.RpcError) as caught:
                waiting.result()
        refusal = refusal_of(caught.value)
        assert isinstance(refusal, PermissionRevoked)
        eventually(lambda: hosted.handlers() == 1, "the other tenant's stream is left")
        assert other.step(VALUES).step == 2
        assert has_lane(other)


def test_one_that_steps_ends_when_its_token_is_revoked(hosted: HostedServer, access: AccessFile) -> None:
    """Between two of its blocks: what has been applied was answered."""
    with run_of(hosted, "lab") as run:
        access.remove("lab")
        with pytest.raises(PermissionRevoked) as caught:
            eventually(lambda: run.step(VALUES).step < 0, "it is ended")
        assert caught.value.applied is False
        assert steps_of(hosted, "lab") == run.step_count


@pytest.mark.parametrize("quota", ["steps_per_second = 2", 'bytes_per_second = "1KiB"'])
def test_who_goes_too_fast_waits(
    hosted: HostedServer, access: AccessFile, monkeypatch: pytest.MonkeyPatch, quota: str
) -> None:
    """Before the next block; the others do not."""

    async def keep(guard: StreamGuard, pace: Pace | None, longest_seconds: float = math.inf) -> float:
        """What would have been waited for."""
        seconds = 0.0 if pace is None else min(pace.wait_seconds(), longest_seconds)
        await guard.read(lambda: asyncio.sleep(0))
        return seconds

    monkeypatch.setattr(StreamGuard, "keep", keep)
    with run_of(hosted, "lab") as run, run_of(hosted, "other") as other:
        access.quotas["lab"] = quota
        access.write()
        eventually(lambda: run.step(VALUES).paced_seconds > 0, "it has gone faster than it may")
        assert has_lane(run)
        assert other.step(VALUES).paced_seconds == 0
