"""A server that brings its runs back can be asked how far it is, and says so in its log."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from gradwire.client import AMSGrad, Starting, connect
from gradwire.server.app import Server
from gradwire.server.cli.commands import cli
from gradwire.server.config import ServerConfig
from gradwire.server.durability import recovery_progress
from gradwire.server.durability.recovery_progress import RecoveryProgress
from gradwire.server.durability.restorer import Restorer
from gradwire.v1 import service_pb2, service_pb2_grpc
from tests.faults.bare import refusal_of
from tests.faults.hosted import HostedServer
from tests.server.clock import Clock


def test_it_is_answerable_while_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with HostedServer(data_dir=str(tmp_path)) as hosted, connect(hosted.target) as connection:
        connection.create_run("a", {"w": np.zeros(1000)}, AMSGrad(), durability="SNAPSHOT").close()
        with connection.create_run("b", {"w": np.zeros(3)}, AMSGrad(), durability="JOURNAL") as run:
            for _ in range(5):
                run.step({"w": np.ones(3)})
            stored = hosted.registry.stored_runs
            assert stored is not None
            monkeypatch.setattr(stored.snapshotter, "save_last", lambda: asyncio.sleep(0))  # as if it were killed
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(recovery_progress, "TELL_SECONDS", 0.01)
    server: Any = None
    asked: list[Any] = []
    replay = Restorer.replay

    def ask_meanwhile(self: Restorer, *arguments: Any) -> int:
        step = replay(self, *arguments)
        if step == 4:
            target = server.addresses[0]
            with grpc.insecure_channel(target) as channel:
                stub = service_pb2_grpc.OptimizerServiceStub(channel)
                asked.append(stub.GetServerStatus(service_pb2.GetServerStatusRequest(), timeout=20))
                with pytest.raises(grpc.RpcError) as caught:
                    stub.ListRuns(service_pb2.ListRunsRequest(), timeout=20)
                asked.append(refusal_of(caught.value))
            asked.append(CliRunner().invoke(cli, ["health", "--verbose", "--target", target, "--timeout", "20"]))
        return step

    async def start() -> None:
        nonlocal server
        server = Server(ServerConfig(listen=("127.0.0.1:0",), device="cpu", data_dir=str(tmp_path)))
        with monkeypatch.context() as patch:
            patch.setattr(Restorer, "replay", ask_meanwhile)
            await server.start()
        await server.drain()

    asyncio.run(start())
    status, refusal, health = asked
    assert not status.recovered
    found = status.recovery
    assert (found.runs, found.total_runs, found.run, found.blocks, found.total_blocks) == (1, 2, "runs/b", 3, 5)
    assert found.snapshot_bytes == found.total_snapshot_bytes > 2 * 8 * 1000
    assert isinstance(refusal, Starting)
    assert health.exit_code == 1
    first, *facts = health.output.splitlines()
    assert first.endswith(": NOT_SERVING")
    (said,) = (fact for fact in facts if fact.startswith("recovered:"))
    assert "no: 1 of 2 runs, " in said
    assert said.endswith("; now runs/b, 3 of about 5 blocks of its journal")
    assert any(
        record.getMessage().startswith("bringing runs back: 1 of 2 runs, ")
        for record in caplog.records
        if record.name == recovery_progress.__name__
    )


def test_it_ends_with_all_of_them(tmp_path: Path) -> None:
    for _ in range(2):
        with HostedServer(data_dir=str(tmp_path)) as hosted, connect(hosted.target) as connection:
            connection.create_run("a", {"w": np.zeros(3)}, AMSGrad(), on_existing="resume").close()
            status = connection.status()
    assert status.recovered
    recovery = status.recovery
    assert recovery is not None
    assert (recovery.runs, recovery.total_runs, recovery.run) == (1, 1, "")


def test_a_server_that_stores_nothing_has_none() -> None:
    with HostedServer() as hosted, connect(hosted.target) as connection:
        assert connection.status().recovery is None
        health = CliRunner().invoke(cli, ["health", "--verbose", "--target", hosted.target])
    assert health.exit_code == 0
    first, *facts = health.output.splitlines()
    assert first == f"{hosted.target}: SERVING"
    assert "recovered:         yes" in facts


def test_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(recovery_progress, "perf_counter", clock.monotonic)
    progress = RecoveryProgress()
    assert progress.text == "it has not begun"
    progress.begin(1, [2**20, 2**21])
    clock.now += 4
    assert progress.text == "1 of 3 runs, 0 of 3 MiB of snapshots, in 4 s"
    progress.begin_run("runs/x")
    assert progress.text.endswith("in 4 s; now runs/x")
    progress.begin_run("runs/y")
    assert progress.text.endswith("2 of 3 runs, 0 of 3 MiB of snapshots, in 4 s; now runs/y")
    progress.end()
    clock.now += 100
    assert progress.text == "3 of 3 runs, 0 of 3 MiB of snapshots, in 4 s"
