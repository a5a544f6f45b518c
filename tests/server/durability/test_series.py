"""Series over the end of their server: as safe as the blocks that brought them, and counted once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, Run, Server, connect
from gradwire.v1 import service_pb2, train_pb2
from tests.faults.hosted import HostedServer
from tests.server.durability.lasting import LastingServer, gradient

FIELDS = ("first_step", "first", "minimum", "maximum", "last", "total", "count")


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[LastingServer]:
    with LastingServer(tmp_path) as server:
        yield server


@pytest.fixture
def server(lasting: LastingServer) -> Iterator[Server]:
    with connect(lasting.target) as connection:
        yield connection


def all_of(run: Run) -> dict[str, Any]:
    """Bits of all series but the speed, which is of the process."""
    names = sorted(set(run.series_names()) - {"steps_per_second"})
    found = {name: run.series(name) for name in names}
    return {
        name: (each.bucket_steps, each.last_step, *(getattr(each, field).tobytes() for field in FIELDS))
        for name, each in found.items()
    }


def log_message(run: Run, number: int, epoch: int, value: float) -> service_pb2.LogScalarsRequest:
    scalars = [train_pb2.Scalar(name="late", values=[value])]
    return service_pb2.LogScalarsRequest(
        name=f"runs/{run.name}", worker_id=run.worker_id, number=number, epoch=epoch, scalars=scalars
    )


def test_what_was_acknowledged_with_a_journaled_block_is_there_after_a_kill(
    lasting: LastingServer, server: Server
) -> None:
    run = server.create_run("x", {"w": gradient(0, 4)}, AMSGrad(), durability="JOURNAL")
    steps = {"w": np.stack([gradient(k, 4) for k in range(3000)])}
    run.step({"w": gradient(1, 4)}, log={"loss": 0.1, "odd": math.nan})
    run.step_many(steps, returns="none", lr=0.5, log={"loss": np.random.default_rng(0).normal(size=3000)})
    run.save_snapshot()
    run.step({"w": gradient(2, 4)}, log={"loss": math.inf})
    run.log(loss=3.0)
    run.close()
    run = server.attach("x", worker_id=run.worker_id)
    before, epoch = all_of(run), run.describe().epoch
    assert set(before) == {"loss", "odd", "gradient_norm", "lr"}
    assert run.series("loss").bucket_steps == 2
    request = log_message(run, 2, epoch, 1.0)
    assert server._link.stub.LogScalars(request).step == 3002
    with_log = all_of(run)
    lasting.restart()
    assert all_of(run) == with_log
    assert server._link.stub.LogScalars(request).step == 3002
    assert all_of(run) == with_log
    run.step({"w": gradient(3, 4)}, log={"loss": 1.0})
    assert run.series("late").count.tolist() == [1]
    lasting.restart()
    assert run.series("loss").count.sum() == 3004
    assert run.last_receipt is not None
    assert run.last_receipt.step == 3003


def test_no_want_of_memory_for_series_stops_a_run_from_coming_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HostedServer(data_dir=str(tmp_path)) as hosted, connect(hosted.target) as server:
        with server.create_run("x", {"w": gradient(0, 1000)}, AMSGrad(), durability="JOURNAL") as run:
            run.step({"w": gradient(1, 1000)}, log={f"value {number}": 1.0 for number in range(48)})
        values_bytes = hosted.run_of("x").spec.memory_bytes
        assert hosted.run_of("x").series.size_bytes > 2 * values_bytes
        assert hosted.registry.stored_runs is not None
        snapshotter = hosted.registry.stored_runs.snapshotter
        monkeypatch.setattr(snapshotter, "save_last", lambda: asyncio.sleep(0))  # as if it were killed
    with HostedServer(data_dir=str(tmp_path), max_memory=2 * values_bytes) as hosted, connect(hosted.target) as server:
        (found,) = server.list_runs()
        assert (found.step, found.damage) == (1, "")
        assert server.attach("x").series_names() == [f"value {number}" for number in range(48)], "its own find no room"


def test_of_a_run_with_snapshots_they_are_those_of_its_snapshot(lasting: LastingServer, server: Server) -> None:
    run = server.create_run("x", {"w": gradient(0, 4)}, AMSGrad(), durability="SNAPSHOT")
    run.step({"w": gradient(1, 4)}, log={"loss": 0.5})
    snapshot = run.save_snapshot()
    at_snapshot = all_of(run)
    run.log(loss=1.5)
    run.close()  # nothing but values is newer than the snapshot
    before = all_of(server.attach("x"))
    lasting.stop()
    lasting.start()
    run = server.attach("x")
    assert all_of(run) == before
    assert before != at_snapshot
    run.roll_back(snapshot)
    assert all_of(run) == at_snapshot
    lasting.restart()
    assert all_of(server.attach("x")) == at_snapshot
