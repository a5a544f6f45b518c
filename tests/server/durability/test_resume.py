"""``client/synthetic.py --resume``: an experiment that was killed, and whose server was, ends with the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import Adam, AMSGrad, RunRolledBack, Server, WorkerConflict, connect
from tests.children import child
from tests.server.durability.lasting import LastingServer, gradient

SCRIPT = Path(__file__).parents[3] / "client" / "synthetic.py"
FLAGS = ("--optimizer", "amsgrad", "--schedule", "inverse-sqrt")


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LastingServer]:
    with LastingServer(tmp_path_factory.mktemp("resume")) as server:
        yield server


@pytest.fixture(autouse=True)
def no_run_is_left(lasting: LastingServer) -> Iterator[None]:
    """A test that fails leaves its runs; the next one may use their names."""
    yield
    with connect(lasting.target) as connection:
        for run in connection.list_runs():
            connection.delete_run(run.name)


@pytest.fixture
def server(lasting: LastingServer) -> Iterator[Server]:
    with connect(lasting.target) as connection:
        yield connection


def experiment(lasting: LastingServer, out: Path, *flags: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """A process that makes it; it is killed at the end, if it has not ended before."""
    command = [sys.executable, str(SCRIPT), "--target", lasting.target, "--out", str(out), *FLAGS, *flags]
    return child(command)


def finish(lasting: LastingServer, out: Path, *flags: str) -> dict[str, Any]:
    with experiment(lasting, out, *flags) as process:
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    (row,) = json.loads((out / "summary.json").read_text())
    return {key: row[key] for key in ("steps", "x", "average_regret")}


def wait_for_lines(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Until so many blocks are noted."""
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, "the experiment is over already"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(("steps", "block"), [(300_000, 1009), (1200, 1)])
def test_an_interrupted_experiment_ends_with_the_same_bits(
    lasting: LastingServer, tmp_path: Path, steps: int, block: int
) -> None:
    flags = ("--steps", str(steps), "--block", str(block), "--variant", "stochastic")
    expected = finish(lasting, tmp_path / "whole", *flags)
    out = tmp_path / "parts"
    notes = out / "progress-amsgrad-inverse-sqrt.jsonl"
    for part in range(3):
        with experiment(lasting, out, *flags, *(["--resume"] if part else [])) as process:
            wait_for_lines(notes, (part + 1) * (steps // block // 5), process)
            if part == 1:
                lasting.restart()  # the client tries again until it is back
                wait_for_lines(notes, notes.read_bytes().count(b"\n") + 3, process)
    assert finish(lasting, out, *flags, "--resume") == expected
    curves = [(tmp_path / name / "regret.csv").read_text() for name in ("whole", "parts")]
    assert curves[0] == curves[1]
    with connect(lasting.target) as server:
        assert server.list_runs() == [], "what is done with is deleted"


def test_a_cut_line_does_not_count(lasting: LastingServer, server: Server, tmp_path: Path) -> None:
    flags = ("--steps", "50000", "--block", "500")
    expected = finish(lasting, tmp_path / "whole", *flags)
    notes = tmp_path / "cut" / "progress-amsgrad-inverse-sqrt.jsonl"
    with experiment(lasting, tmp_path / "cut", *flags) as process:
        wait_for_lines(notes, 10, process)
    data = notes.read_bytes()
    *whole, _ = data.split(b"\n")
    noted = json.loads(whole[-1])["sequence"]
    name = json.loads(whole[0])["run"]
    deadline = time.monotonic() + 30
    while (run := next(run for run in server.list_runs() if run.name == name)).attached_worker_id:
        assert time.monotonic() < deadline, "the server has not noticed that the client was killed"
    # As if it had been killed while it noted the last block; nobody is killed with two blocks to note.
    end = data.rfind(b"\n") + 1
    notes.write_bytes(data[: end - 20] if run.step == 500 * noted else data[:end] + whole[-1][:-20])
    assert finish(lasting, tmp_path / "cut", *flags, "--resume") == expected


def test_another_experiment_is_not_resumed(lasting: LastingServer, tmp_path: Path) -> None:
    finish(lasting, tmp_path, "--steps", "2000")
    with experiment(lasting, tmp_path, "--steps", "3000", "--resume") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "is of an experiment with steps = 2000, not 3000" in errors
    assert finish(lasting, tmp_path, "--steps", "2000", "--resume")["steps"] == 2000, "it is over, and says so again"


# --- what it is made of ----------------------------------------------------------------------------------------------


def test_a_restarted_worker_gets_the_result_of_the_block_it_does_not_know_of(server: Server) -> None:
    run = server.create_run("r", {"w": gradient(0, 9)}, AMSGrad(lr=0.1), worker_id="me")
    run.step({"w": gradient(1, 9)})
    known = run.last_sequence
    lost = run.step({"w": gradient(2, 9)})  # the process is killed before it has noted this
    expected = run.params["w"].copy()
    run.close()
    again = server.attach("r", worker_id="me", last_sequence=known)
    receipt = again.step({"w": gradient(2, 9)})
    assert receipt == lost
    assert again.last_sequence == known + 1 == 2
    assert np.array_equal(again.params["w"], expected)
    assert again.step({"w": gradient(3, 9)}).step == 3
    again.close()
    last = server.attach("r", worker_id="me", last_sequence=3)
    assert last.step({"w": gradient(4, 9)}).step == 4, "where nothing was lost, a step is a step"
    last.close()
    server.delete_run("r")


def test_a_restarted_worker_whose_block_is_refused_goes_on(server: Server) -> None:
    run = server.create_run("r", {"w": gradient(0, 2)}, Adam(), worker_id="me")
    run.step({"w": gradient(1, 2)})
    run.close()
    again = server.attach("r", worker_id="me", last_sequence=1)
    with pytest.raises(ValueError, match="shape"):
        again.step({"w": gradient(1, 3)})
    assert again.step({"w": gradient(2, 2)}).step == 2
    again.close()
    server.delete_run("r")


def test_a_worker_that_knows_too_much_or_too_little_is_told(server: Server) -> None:
    run = server.create_run("r", {"w": gradient(0, 2)}, Adam(), worker_id="me")
    for step in range(3):
        run.step({"w": gradient(step, 2)})
    run.close()
    with pytest.raises(RunRolledBack, match="has acknowledged block 4"):
        server.attach("r", worker_id="me", last_sequence=4)
    with pytest.raises(WorkerConflict):
        server.attach("r", worker_id="me", last_sequence=1)
    with pytest.raises(ValueError, match="without worker_id"):
        server.attach("r", last_sequence=3)
    server.delete_run("r")
