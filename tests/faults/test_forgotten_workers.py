"""A run remembers so many workers. One that is forgotten is told so, and nothing is said to be lost that is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gradwire.client import AMSGrad, Fenced, RunRolledBack, Server, WorkerForgotten, connect
from gradwire.v1 import run_pb2
from tests.contract.bare import BareClient, group
from tests.faults.hosted import HostedServer

ONES = {"w": np.ones(3, np.float32)}


@pytest.fixture(autouse=True)
def two_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradwire.server.engine.run.MAX_WORKERS", 2)


def step_as(server: Server, *workers: str) -> None:
    for worker in workers:
        with server.attach("a", worker_id=worker, takeover=True) as run:
            run.step(ONES)


def test_a_forgotten_worker_is_told_so_and_goes_on(hosted: HostedServer) -> None:
    with connect(hosted.target) as server:
        run = server.create_run("a", ONES, AMSGrad(), worker_id="old", takeover=True, durability="MEMORY")
        for _ in range(3):
            run.step(ONES)
        step_as(server, "b", "c")
        with pytest.raises(Fenced):
            run.step(ONES)
        with pytest.raises(WorkerForgotten, match="at step 5, remembers nothing of worker old") as caught:
            run.step(ONES)
        assert caught.value.applied in (None, False)
        assert run.step(ONES).step == 6
        np.testing.assert_array_equal(run.params["w"], server.attach("a", takeover=True).params["w"])


def test_one_of_whom_more_is_known_than_that_is_rolled_back_still(hosted: HostedServer) -> None:
    """Of a worker that is remembered a lower number means that the server has lost something."""
    with connect(hosted.target) as server:
        run = server.create_run("a", ONES, AMSGrad(), worker_id="old", takeover=True, durability="MEMORY")
        for _ in range(3):
            run.step(ONES)
        step_as(server, "b", "c", "d")
        hosted.run_of("a").attach("old", True, lambda error: None).record.last_sequence = 1
        with pytest.raises(Fenced):
            run.step(ONES)
        with pytest.raises(RunRolledBack):
            run.step(ONES)


def test_steps_that_are_missing_are_lost_whoever_was_forgotten(hosted: HostedServer) -> None:
    with connect(hosted.target) as server:
        run = server.create_run("a", ONES, AMSGrad(), worker_id="old", takeover=True, durability="MEMORY")
        for _ in range(3):
            run.step(ONES)
        step_as(server, "b", "c")
        hosted.run_of("a").step = 2
        with pytest.raises(Fenced):
            run.step(ONES)
        with pytest.raises(RunRolledBack):
            run.step(ONES)


def test_new_workers_of_a_new_run_are_not_told(hosted: HostedServer) -> None:
    with BareClient(hosted.target) as bare:
        bare.create("a", [group(w=[1])], [0.0], durability=run_pb2.DURABILITY_MEMORY)
        for worker, told in (("a", False), ("b", False), ("c", False), ("d", True), ("d", False), ("a", True)):
            with bare.attach("a", worker_id=worker) as stream:
                assert stream.attached.perhaps_forgotten is told, worker


def test_it_is_known_after_a_restart(tmp_path: Path) -> None:
    for start in range(2):
        with HostedServer(data_dir=str(tmp_path / "data")) as server, BareClient(server.target) as bare:
            if not start:
                bare.create("a", [group(w=[1])], [0.0], durability=run_pb2.DURABILITY_SNAPSHOT)
                for worker in ("a", "b", "c"):
                    with bare.attach("a", worker_id=worker) as stream:
                        stream.step(1, [1.0])
            else:
                with bare.attach("a", worker_id="a") as stream:
                    assert stream.attached.perhaps_forgotten
