"""Promise: nobody waits without a reason that can be read. Each of them is held up here, and read by the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from gradwire.server.durability.run_storage import storage_of
from gradwire.server.runs import stalls
from gradwire.server.runs.stalls import Stalls
from gradwire.v1 import service_pb2
from tests.contract.bare import BareClient
from tests.contract.shared_runs import Shared
from tests.faults.bare import BareStream, Stub, attach_when_free, create, fresh_name, spec_of
from tests.faults.gated import BULK, GatedDevice, gradient
from tests.faults.hosted import HostedServer, eventually


class Watched:
    """A run of one worker, and what is said of it."""

    def __init__(self, stub: Stub, size: int) -> None:
        self.stub, self.size = stub, size
        self.name = fresh_name("waits")
        create(stub, spec_of(self.name, size), np.zeros(size, np.float32))
        self.stream = BareStream(stub, self.name, "w")

    def worker(self) -> service_pb2.Worker:
        (worker,) = self.stub.ListWorkers(service_pb2.ListWorkersRequest(name=f"runs/{self.name}")).workers
        return worker

    def summary(self) -> service_pb2.RunSummary:
        runs = self.stub.ListRuns(service_pb2.ListRunsRequest()).runs
        return next(run for run in runs if run.name == f"runs/{self.name}")

    def eventually(self, kind: service_pb2.WaitsFor.ValueType, text: str) -> None:
        """Both calls say so, and that it lasts."""

        def said() -> bool:
            waits = (self.worker().wait, self.summary().wait)
            return (
                all((wait.kind, wait.text) == (kind, text) for wait in waits)
                and 0 < waits[0].seconds < waits[1].seconds
            )

        eventually(said, f"it waits for {text}")


@pytest.fixture
def run(hosted_stub: Stub) -> Iterator[Watched]:
    made = Watched(hosted_stub, BULK)
    yield made
    made.stream.finish()


def test_for_a_block_and_for_the_rest_of_one(run: Watched) -> None:
    assert not run.summary().HasField("idle_seconds")
    run.eventually(service_pb2.WAITS_FOR_BLOCK, "block 1")
    run.stream.send(1, gradient(BULK, 1)[: BULK // 2], last=False, steps=1, returns=3)
    run.eventually(service_pb2.WAITS_FOR_GRADIENTS, "gradients of block 1, 136.7 of 273.4 KiB here")
    run.stream.send(1, gradient(BULK, 1)[BULK // 2 :], start=BULK // 2)
    assert run.stream.answer()[1].step == 1
    run.eventually(service_pb2.WAITS_FOR_BLOCK, "block 2")
    assert run.summary().idle_seconds >= 0


def test_for_the_lock(run: Watched, hosted: HostedServer) -> None:
    inside = hosted.run_of(run.name)
    run.stream.send(1, gradient(BULK, 1)[:1000], last=False, steps=1, returns=3)
    run.eventually(service_pb2.WAITS_FOR_GRADIENTS, "gradients of block 1, 3.9 of 273.4 KiB here")
    hosted.locked(inside)
    run.stream.send(1, gradient(BULK, 1)[1000:], start=1000)
    run.eventually(service_pb2.WAITS_FOR_LOCK, "the lock of the run, to apply block 1")
    hosted.call(inside.lock.release)
    assert run.stream.answer()[1].step == 1
    hosted.locked(inside)
    run.stream.send(2, gradient(BULK, 1)[:1000], last=False, steps=1, returns=3)
    run.eventually(service_pb2.WAITS_FOR_LOCK, "the lock of the run, to apply block 2")
    hosted.call(inside.lock.release)
    run.eventually(service_pb2.WAITS_FOR_GRADIENTS, "gradients of block 2, 3.9 of 273.4 KiB here")


def test_for_the_device(run: Watched, device: GatedDevice) -> None:
    with device.hold("commit") as gate:
        run.stream.send_block(1, gradient(BULK, 1), slice_elements=BULK, returns=3)
        gate.wait_entered()
        run.eventually(service_pb2.WAITS_FOR_DEVICE, "the device, which computes block 1")
    assert run.stream.answer()[1].step == 1


def test_for_a_reader(connect_bare: Callable[[str], Stub]) -> None:
    with HostedServer() as hosted:  # which does not give it up while it is looked at
        run = Watched(connect_bare(hosted.target), 2**22)
        stub = connect_bare(hosted.target)
        run.stub = stub  # its own connection is full
        run.stream.send_block(1, gradient(2**22, 1))
        run.eventually(service_pb2.WAITS_FOR_READER, "its reader, to take the answer to block 1")
        run.stream.cancel()
        attach_when_free(stub, run.name, "other").finish()


@pytest.mark.parametrize("size", [10, BULK], ids=["straight", "the long way"])
def test_for_the_disk(
    tmp_path_factory: pytest.TempPathFactory,
    connect_bare: Callable[[str], Stub],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    with HostedServer(data_dir=str(tmp_path_factory.mktemp("data"))) as hosted:
        run = Watched(connect_bare(hosted.target), size)
        storage = storage_of(hosted.run_of(run.name))
        assert storage is not None
        append, held = storage.store.append, Future[Any]()
        kept: list[Future[Any]] = []

        def hold(*block: Any) -> Future[Any]:
            kept.append(append(*block))
            return held

        monkeypatch.setattr(storage.store, "append", hold)
        run.stream.send_block(1, gradient(size, 1), returns=3)
        run.eventually(service_pb2.WAITS_FOR_DISK, "the disk, to have block 1 in the journal")
        held.set_result(kept[0].result())
        assert run.stream.answer()[1].step == 1
        run.stream.finish()


def test_for_a_round(hosted: HostedServer) -> None:
    with BareClient(hosted.target) as bare:
        shared = Shared(bare, quorum=2)
        a, b = shared.attach("a"), shared.attach("b")
        a.send([1.0, 2.0])
        shared.until_waiting("a")
        waits = {worker.worker_id: worker.wait for worker in shared.workers().workers}
        assert waits["a"].kind == service_pb2.WAITS_FOR_ROUND
        assert waits["a"].text.startswith("its round: 1 of 2; waits for b")
        assert (waits["b"].kind, waits["b"].text) == (service_pb2.WAITS_FOR_BLOCK, "block 1")
        (summary,) = (
            run
            for run in bare.call("ListRuns", service_pb2.ListRunsRequest()).runs
            if run.name == f"runs/{shared.name}"
        )
        assert (summary.wait.kind, summary.wait.text) == (
            service_pb2.WAITS_FOR_ROUND,
            "round 1, with 1 of 2 workers here",
        )
        b.send([1.0, 2.0])
        a.answer(), b.answer()
        found = shared.workers()
        assert found.idle_seconds >= 0
        a.leave()
        b.leave()
        eventually(
            lambda: not any(worker.HasField("wait") for worker in shared.workers().workers), "nobody waits who has left"
        )


def test_a_stall_is_in_the_servers_log(
    run: Watched, hosted: HostedServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stalls, "STALL_SECONDS", 0.0)
    run.stream.send(1, gradient(BULK, 1)[: BULK // 2], last=False, steps=1, returns=3)
    run.eventually(service_pb2.WAITS_FOR_GRADIENTS, "gradients of block 1, 136.7 of 273.4 KiB here")
    for _ in range(2):
        hosted._run(Stalls(hosted.registry.living).look())
    (said,) = (record.getMessage() for record in caplog.records if record.name == stalls.__name__)
    assert said.startswith(f"runs/{run.name}: worker 'w' has waited ")
    assert said.endswith(" s for gradients of block 1, 136.7 of 273.4 KiB here")
