"""Disks that are full, files that were changed, servers that are in each other's way: each has a defined end."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import (
    Adam,
    AMSGrad,
    InvalidSpec,
    Run,
    RunAlreadyExists,
    RunDamaged,
    RunRolledBack,
    Server,
    StorageFull,
    connect,
)
from tests.faults.gated import GatedDevice
from tests.faults.hosted import HostedServer
from tests.server.durability.lasting import LastingServer, everything, gradient, small_file_system
from tests.serving import ServerProcess

SIZE = 50


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[LastingServer]:
    with LastingServer(tmp_path) as server:
        yield server


@pytest.fixture
def server(lasting: LastingServer) -> Iterator[Server]:
    with connect(lasting.target) as connection:
        yield connection


def trained(server: Server, name: str, durability: str, steps: int = 3) -> Run:
    run = server.create_run(name, {"w": gradient(0, SIZE)}, AMSGrad(lr=0.1), durability=durability)
    for step in range(steps):
        run.step({"w": gradient(step, SIZE)})
    return run


def alter(lasting: LastingServer, statement: str) -> None:
    """Changes the database of a server that is not running."""
    database = sqlite3.connect(lasting.data / "journal.sqlite3")
    database.execute("PRAGMA locking_mode=EXCLUSIVE")
    assert database.execute(statement).rowcount > 0
    database.commit()
    database.close()


def fill_up(path: Path) -> None:
    """Leaves no room on a file system."""
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        return


def until_refused(run: Run) -> tuple[dict[str, Any], StorageFull]:
    """Steps on, since the log that is there takes a few more; what the run was before the refusal, and that."""
    for step in range(3, 100):
        before = everything(run)
        try:
            run.step({"w": gradient(step, SIZE)})
        except StorageFull as refusal:
            return before, refusal
    raise AssertionError("a full disk has taken a hundred blocks")


def test_without_a_data_directory_no_promise_is_made_that_cannot_be_kept() -> None:
    with ServerProcess() as process, connect(process.target) as server:
        for durability in ("JOURNAL", "SNAPSHOT"):
            with pytest.raises(InvalidSpec, match=f"durability {durability} needs a server with a data directory"):
                server.create_run("x", {"w": np.zeros(2)}, Adam(), durability=durability)
        run = server.create_run("x", {"w": np.zeros(2)}, Adam())
        assert run.step({"w": np.ones(2)}).durability == "MEMORY"
        with pytest.raises(ValueError, match="expected one of 'JOURNAL', 'SNAPSHOT', 'MEMORY'"):
            server.create_run("y", {"w": np.zeros(2)}, Adam(), durability="FOREVER")


def test_a_second_server_on_the_directory_does_not_start(lasting: LastingServer) -> None:
    with pytest.raises(RuntimeError, match=f"another server, process {lasting.process.pid}, uses .*data"):
        ServerProcess("--data-dir", str(lasting.data))


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"Error: cannot write to .*file/data: Not a directory"):
        ServerProcess("--data-dir", str(tmp_path / "file" / "data"))


@pytest.mark.parametrize("durability", ["JOURNAL", "SNAPSHOT"])
def test_a_full_disk_refuses_what_it_cannot_keep_and_nothing_is_lost(tmp_path: Path, durability: str) -> None:
    with small_file_system(tmp_path, 2**20), LastingServer(tmp_path) as lasting, connect(lasting.target) as server:
        run = trained(server, "x", durability)
        before = everything(run)
        filler = tmp_path / "filler"
        fill_up(filler)
        if durability == "JOURNAL":
            before, refusal = until_refused(run)
            assert refusal.applied is False
            assert everything(run) == before
        with pytest.raises(StorageFull, match="disk is full"):
            server.create_run("y", {"w": np.zeros(60_000)}, Adam())
        assert [run.name for run in server.list_runs()] == ["x"]
        with pytest.raises(StorageFull):
            run.write({"w": np.zeros(SIZE)})
        assert everything(run) == before, "a write that could not be kept was not made"
        filler.unlink()
        step = run.step_count
        assert run.step({"w": gradient(9, SIZE)}).step == step + 1
        after = everything(run)
        lasting.stop()
        lasting.start()
        assert everything(run) == after


@pytest.mark.parametrize("size", [10, 10_000], ids=["in one piece", "in several"])
def test_a_full_disk_refuses_an_import(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    file = tmp_path_factory.mktemp("exported") / "x.safetensors"
    with small_file_system(tmp_path, 2**20), LastingServer(tmp_path) as lasting, connect(lasting.target) as server:
        run = server.create_run("x", {"w": gradient(0, size)}, AMSGrad(), durability="JOURNAL")
        run.export(file)
        filler = tmp_path / "filler"
        fill_up(filler)
        with pytest.raises(StorageFull, match="disk is full"):
            server.import_run("y", file)
        assert [found.name for found in server.list_runs()] == ["x"]
        filler.unlink()
        assert server.import_run("y", file).digest() == run.digest()


def test_a_damaged_block_ends_the_run_before_it_and_says_so(lasting: LastingServer, server: Server) -> None:
    run, other = trained(server, "x", "JOURNAL"), trained(server, "y", "JOURNAL")
    twin = trained(server, "twin", "MEMORY", steps=1)
    expected, untouched = everything(twin), everything(other)
    lasting.kill()
    alter(lasting, "UPDATE journal SET gradients = zeroblob(200) WHERE step = 2 AND key / 68719476736 = 1")
    lasting.start()
    assert everything(run) == expected
    assert everything(other) == untouched
    with pytest.raises(RunRolledBack):
        run.step({"w": gradient(3, SIZE)})
    loss = "steps 2 to 3 are lost: after step 1 block 2 of the journal is not what was written"
    assert run.describe().loss == loss
    assert f"runs/x goes on from step 1: {loss}" in lasting.said
    assert run.step({"w": gradient(1, SIZE)}).step == 2
    last = everything(run)
    lasting.restart()
    assert everything(run) == last


def test_the_snapshot_before_a_damaged_one_and_the_journal_lose_nothing(lasting: LastingServer, server: Server) -> None:
    run = trained(server, "x", "JOURNAL")
    expected = everything(run)
    lasting.stop()
    newest = next(path for path in (lasting.data / "snapshots").iterdir() if "-3-" in path.name)
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    lasting.start()
    assert everything(run) == expected
    assert run.describe().loss == ""
    assert "the snapshot of step 3 is damaged" in lasting.said
    assert run.step({"w": gradient(3, SIZE)}).step == 4


@pytest.mark.parametrize("durability", ["JOURNAL", "SNAPSHOT"])
def test_a_client_is_told_that_what_it_has_written_is_lost(
    lasting: LastingServer, server: Server, durability: str
) -> None:
    """Though no step is: only values that were written after the last one."""
    run = trained(server, "x", durability)
    run.save_snapshot()
    expected = everything(run)
    run.write({"w": np.zeros(SIZE)})
    lasting.kill()
    newest = max((lasting.data / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(b"")
    lasting.start()
    with pytest.raises(RunRolledBack, match="values that had been written are lost"):
        run.step({"w": gradient(3, SIZE)})
    assert everything(run) == expected
    assert run.step({"w": gradient(3, SIZE)}).step == 4


def test_a_run_that_cannot_be_brought_back_is_named_and_the_others_serve(
    lasting: LastingServer, server: Server
) -> None:
    run, other = trained(server, "x", "SNAPSHOT"), trained(server, "y", "JOURNAL")
    expected = everything(other)
    lasting.stop()
    uid = run.describe.__self__._attachment.message.run_uid  # type: ignore[attr-defined]
    for path in (lasting.data / "snapshots").glob(f"{uid}*"):
        path.write_bytes(b"")
    lasting.start()
    assert everything(other) == expected
    found = {run.name: run.damage for run in server.list_runs()}
    assert found["y"] == ""
    assert "the snapshot of step 3 is damaged" in found["x"]
    for call in (lambda: server.attach("x"), lambda: run.step({"w": gradient(3, SIZE)}), run.read):
        with pytest.raises(RunDamaged, match="runs/x is stored, but cannot be served: the snapshot of step 3"):
            call()
    with pytest.raises(RunAlreadyExists, match="damaged"):
        server.create_run("x", {"w": np.zeros(2)}, Adam())
    lasting.restart()
    assert server.delete_run("x") == 0
    fresh = server.create_run("x", {"w": np.zeros(2)}, Adam())
    fresh.step({"w": np.ones(2)})
    lasting.restart()
    assert {run.name: (run.step, run.damage) for run in server.list_runs()} == {"x": (1, ""), "y": (3, "")}


def test_a_damaged_run_may_be_replaced(lasting: LastingServer, server: Server) -> None:
    trained(server, "x", "JOURNAL")
    lasting.stop()
    alter(lasting, "UPDATE runs SET spec = spec || ' '")
    lasting.start()
    assert server.list_runs()[0].damage == "its description in the journal is damaged"
    server.create_run("x", {"w": np.zeros(2)}, Adam(), on_existing="replace").close()
    lasting.restart()
    assert [(run.name, run.step, run.damage) for run in server.list_runs()] == [("x", 0, "")]


def test_the_journal_of_another_build_is_refused_by_name(lasting: LastingServer, server: Server) -> None:
    """A device of another class counts as another build. Once the run's own build has stopped in order, it is taken."""
    run = trained(server, "x", "JOURNAL")
    run.close()
    expected = everything(run)
    lasting.kill()
    settings: dict[str, Any] = {"data_dir": str(lasting.data)}
    refused = pytest.raises(RunDamaged, match=r"journal after step 0 was written by another build .* SIGTERM")
    with HostedServer(GatedDevice(), **settings) as other, connect(other.target) as connection, refused:
        connection.attach("x")
    lasting.start()
    assert everything(run) == expected
    lasting.stop()
    with HostedServer(GatedDevice(), **settings) as other, connect(other.target) as connection:
        again = connection.attach("x")
        assert everything(again) == expected
        assert again.step({"w": gradient(3, SIZE)}).step == 4


def test_a_database_that_is_none_stops_the_server_with_a_clear_error(lasting: LastingServer, server: Server) -> None:
    trained(server, "x", "JOURNAL")
    lasting.stop()
    (lasting.data / "journal.sqlite3").write_bytes(b"x" * 8192)
    with pytest.raises(RuntimeError, match=r"Error: cannot open the journal .*file is not a database"):
        lasting.start()
