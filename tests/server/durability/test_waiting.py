"""While a change waits for the disk: who waits, who need not, and who may leave."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import (
    AMSGrad,
    GradwireError,
    InvalidSpec,
    ProtocolViolation,
    RetryPolicy,
    RunAlreadyExists,
    RunDamaged,
    Server,
    StorageFailed,
    connect,
)
from gradwire.server import failpoints
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.store.disk import DiskStore
from gradwire.v1 import train_pb2
from tests.faults.bare import BareStream, Stub, create, fresh_name, read_parameters, spec_of
from tests.faults.conftest import check_nothing_is_left, connect_bare  # noqa: F401
from tests.faults.gated import BULK, GatedDevice
from tests.faults.hosted import HostedServer, InBackground, eventually
from tests.server.durability.lasting import everything, gradient

SIZE = 100


class FailingDevice(CpuDevice):
    """The CPU device, until ``fails``."""

    fails = False

    def update(self, *arguments: Any, **options: Any) -> None:
        if self.fails:
            raise RuntimeError("the device has failed")
        super().update(*arguments, **options)


@pytest.fixture
def device() -> GatedDevice:
    return GatedDevice()


@pytest.fixture
def hosted(tmp_path: Path, device: GatedDevice) -> Iterator[HostedServer]:
    with HostedServer(device, data_dir=str(tmp_path / "data")) as server:
        yield server
        failpoints.disarm()
        check_nothing_is_left(server)


@pytest.fixture
def stub(hosted: HostedServer, connect_bare: Callable[[str], Stub]) -> Stub:  # noqa: F811
    return connect_bare(hosted.target)


@pytest.fixture
def server(hosted: HostedServer) -> Iterator[Server]:
    with connect(hosted.target) as connection:
        yield connection


def store_of(hosted: HostedServer) -> DiskStore:
    assert hosted.registry.stored_runs is not None
    store = hosted.registry.stored_runs.store
    assert isinstance(store, DiskStore)
    return store


def test_a_block_is_answered_only_when_it_is_on_disk(hosted: HostedServer, stub: Stub) -> None:
    name = fresh_name("late")
    create(stub, spec_of(name, SIZE), gradient(0, SIZE))
    stream = BareStream(stub, name)
    failpoints.arm("journal.before-commit", "sleep:0.5", at_hit=1)
    stream.send_block(1, gradient(1, SIZE))
    before = store_of(hosted).transactions
    answer = stream.answer()[1]
    assert store_of(hosted).transactions == before + 1
    assert answer.step == 1
    stream.finish()


@pytest.mark.parametrize("size", [SIZE, BULK], ids=["on the event loop", "in a thread"])
@pytest.mark.parametrize("point", ["journal.before-commit", "journal.after-commit"])
def test_a_block_whose_caller_has_left_is_applied_all_the_same(
    hosted: HostedServer, stub: Stub, size: int, point: str
) -> None:
    """The row may be on disk already; what is there must be in memory too, or the next block would follow another."""
    name = fresh_name("left")
    create(stub, spec_of(name, size), gradient(0, size))
    stream = BareStream(stub, name)
    run = hosted.run_of(name)
    failpoints.arm(point, "sleep:0.5", at_hit=1)
    stream.send_block(1, gradient(1, size))
    # Not the lock alone: a block whose caller leaves before its row is on its way is rightly not applied.
    eventually(lambda: failpoints._armed[point].hits, "the block's row is being written")
    stream.cancel()
    hosted.wait_cancelled()
    eventually(lambda: hosted.call(lambda: run.step) == 1, "the block is applied")
    again = BareStream(stub, name)
    assert (again.attached.step, again.attached.last_sequence) == (1, 1)
    again.send_message(train_pb2.Gradients(sequence=1, last=True))
    assert again.answer()[1].repeated
    assert again.step(2, gradient(2, size)).step == 2
    again.finish()


@pytest.mark.parametrize("size", [SIZE, BULK], ids=["one message", "several messages"])
@pytest.mark.parametrize("shared", [False, True], ids=["messages", "shared memory"])
def test_nobody_knows_of_a_block_whose_flush_has_failed(tmp_path: Path, size: int, shared: bool) -> None:
    """Its row may be on disk: a client that is told "not applied" would send other gradients under its number."""
    with HostedServer(near=True, data_dir=str(tmp_path)) as hosted, connect(hosted.target) as server:
        values = {"w": gradient(0, size)}
        run = server.create_run("f", values, AMSGrad(), durability="JOURNAL", shared_memory=shared)
        run.step({"w": gradient(1, size)})
        failpoints.arm("journal.commit", "raise", at_hit=1)
        with pytest.raises(StorageFailed, match="not known") as caught:
            run.step({"w": gradient(2, size)})
        failpoints.disarm()
        assert caught.value.applied is None
        assert hosted.run_of("f").step == 1
        assert not hosted.run_of("f").lock._lock.locked()


def test_an_attachment_whose_caller_has_left_while_it_waited_holds_nothing(hosted: HostedServer, stub: Stub) -> None:
    name = fresh_name("left")
    create(stub, spec_of(name, SIZE), gradient(0, SIZE))
    run = hosted.run_of(name)
    failpoints.arm("journal.before-commit", "sleep:0.5", at_hit=1)
    call = stub.Train(iter([train_pb2.TrainRequest(attach=train_pb2.Attach(run=run.spec.name, worker_id="one"))]))
    eventually(lambda: hosted.call(run.lock._lock.locked), "it waits for the disk")
    call.cancel()
    hosted.wait_cancelled()
    eventually(lambda: not hosted.call(run.lock._lock.locked), "it has left")
    assert hosted.call(lambda: run.holder) is None
    other = BareStream(stub, name, "two")
    assert other.attached.epoch == 1
    other.finish()


def test_readers_see_nothing_of_a_block_that_is_not_on_disk(hosted: HostedServer, stub: Stub) -> None:
    name = fresh_name("unseen")
    values = gradient(0, SIZE)
    create(stub, spec_of(name, SIZE), values)
    stream = BareStream(stub, name)
    run = hosted.run_of(name)
    failpoints.arm("journal.before-commit", "raise")
    stream.send_block(1, gradient(1, SIZE))
    assert "could not write to its disk" in stream.refusal().message
    failpoints.disarm()
    assert np.array_equal(read_parameters(stub, name), values)
    assert hosted.call(lambda: (run.step, run.version)) == (0, 0)


def test_a_run_whose_device_failed_comes_back_with_the_next_server(tmp_path: Path) -> None:
    """Its block is in the journal: it was accepted, and what it would have done is done then."""
    device = FailingDevice(threads=1)
    data: dict[str, Any] = {"data_dir": str(tmp_path)}
    with HostedServer(device, **data) as hosted, connect(hosted.target) as server:
        run = server.create_run("x", {"w": gradient(0, SIZE)}, AMSGrad(lr=0.1), retry=RetryPolicy(deadline_seconds=1))
        run.step({"w": gradient(1, SIZE)})
        device.fails = True
        with pytest.raises(GradwireError):
            run.step({"w": gradient(2, SIZE)})
        device.fails = False
        with pytest.raises(RunDamaged, match="the next start of the server brings it back"):
            server.attach("x")
        with pytest.raises(RunAlreadyExists, match="is damaged"):
            server.create_run("x", {"w": gradient(0, SIZE)}, AMSGrad())
        assert "failed in the middle" in server.list_runs()[0].damage
        twin = server.create_run("twin", {"w": gradient(0, SIZE)}, AMSGrad(lr=0.1))
        for seed in (1, 2):
            twin.step({"w": gradient(seed, SIZE)})
        digest = twin.digest()
    with HostedServer(FailingDevice(threads=1), **data) as hosted, connect(hosted.target) as server:
        assert server.attach("x").digest() == digest


def test_a_block_that_the_journal_cannot_take_is_refused_by_its_header(
    hosted: HostedServer, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradwire.server.engine.block_plan.MAX_ENTRY_BYTES", 5 * 4 * SIZE)
    monkeypatch.setattr("gradwire.server.durability.stored_runs.MAX_ENTRY_BYTES", 5 * 4 * SIZE)
    run = server.create_run(fresh_name("r"), {"w": gradient(0, SIZE)}, AMSGrad())
    run.step_many({"w": gradient(1, 5, SIZE)})
    with pytest.raises(ProtocolViolation, match="Send smaller blocks") as caught:
        run.step_many({"w": gradient(1, 6, SIZE)})
    assert caught.value.metadata["max_steps"] == "5"
    assert run.step({"w": gradient(2, SIZE)}).step == 6
    with pytest.raises(InvalidSpec, match="with durability JOURNAL at most 2000"):
        server.create_run("y", {"w": gradient(0, 6 * SIZE)}, AMSGrad(), durability="JOURNAL")


def test_the_runs_of_a_server_share_a_flush(hosted: HostedServer, server: Server) -> None:
    """Sixteen wait together for one, although the server has eight threads."""
    runs = [server.create_run(fresh_name("r"), {"w": gradient(i, SIZE)}, AMSGrad()) for i in range(16)]
    before = store_of(hosted).transactions
    failpoints.arm("journal.before-commit", "sleep:0.3", at_hit=1)
    barrier = threading.Barrier(len(runs))

    def step(index: int) -> int:
        barrier.wait()
        return runs[index].step({"w": gradient(index, SIZE)}).step

    workers = [InBackground(lambda index=index: step(index)) for index in range(len(runs))]  # type: ignore[misc]
    assert {worker.result() for worker in workers} == {1}
    assert store_of(hosted).transactions - before <= 8


def test_a_snapshot_does_not_hold_up_steps(hosted: HostedServer, server: Server) -> None:
    run = server.create_run(fresh_name("s"), {"w": gradient(0, SIZE)}, AMSGrad(lr=0.1), durability="SNAPSHOT")
    run.step({"w": gradient(1, SIZE)})
    own = hosted.run_of(run.name)
    assert hosted.registry.stored_runs is not None
    snapshotter = hosted.registry.stored_runs.snapshotter
    failpoints.arm("snapshot.before-fsync", "sleep:1", at_hit=1)
    with InBackground(lambda: hosted._run(snapshotter.save(own))) as saving:
        eventually(lambda: snapshotter.costs.pause_seconds > 0, "the state has been copied")
        for step in range(2, 6):
            run.step({"w": gradient(step, SIZE)})
        assert not saving.done()
        assert saving.result().step == 1
    assert everything(run)["step"] == 5


def test_without_memory_for_a_copy_a_run_is_saved_in_place(hosted: HostedServer, server: Server) -> None:
    run = server.create_run(fresh_name("s"), {"w": gradient(0, SIZE)}, AMSGrad(lr=0.1), durability="SNAPSHOT")
    run.step({"w": gradient(1, SIZE)})
    own = hosted.run_of(run.name)
    assert hosted.registry.stored_runs is not None
    budget = hosted.registry.budget
    with budget.reserve(budget.free_bytes, "everything"):
        assert hosted._run(hosted.registry.stored_runs.snapshotter.save(own)).step == 1


def test_a_snapshot_that_fails_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"data_dir": str(tmp_path), "snapshot_interval_seconds": 0.4}
    with HostedServer(**settings) as hosted, connect(hosted.target) as server:
        store = store_of(hosted)
        run = server.create_run("s", {"w": gradient(0, SIZE)}, AMSGrad(lr=0.1))
        uid = hosted.run_of("s").uid
        failpoints.arm("snapshot.before-fsync", "full", at_hit=1)
        failpoints.arm("snapshot.before-record", "raise", at_hit=1)
        run.step({"w": gradient(1, SIZE)})
        eventually(lambda: store.snapshots(uid)[0].step == 1, "the third attempt succeeds")
        assert len(list((tmp_path / "snapshots").iterdir())) == len(store.snapshots(uid)), "nothing is left over"
        failpoints.disarm()
        assert hosted.registry.stored_runs is not None
        assert hosted.registry.stored_runs.snapshotter.costs.failures == 2
    said = [record.getMessage() for record in caplog.records if "will be tried again" in record.getMessage()]
    assert len(said) == 2
    assert "disk is full" in said[0]


def test_snapshots_come_after_so_many_steps_and_after_so_long(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data_dir": str(tmp_path), "snapshot_steps": 5, "snapshot_interval_seconds": 0.5}
    with HostedServer(**settings) as hosted, connect(hosted.target) as server:
        store = store_of(hosted)
        run = server.create_run("s", {"w": gradient(0, SIZE)}, AMSGrad(lr=0.1))
        uid = hosted.run_of("s").uid
        run.step_many({"w": gradient(1, 5, SIZE)})
        eventually(lambda: store.snapshots(uid)[0].step == 5, "five steps are saved")
        run.step({"w": gradient(2, SIZE)})
        eventually(lambda: store.snapshots(uid)[0].step == 6, "half a second later one more is")
