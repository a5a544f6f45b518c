"""A run has one writer: who attaches anew, takes over, writes values or deletes the run ends the older stream."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import numpy as np
import pytest

from gradwire.client import AMSGrad, connect
from gradwire.server.engine.block import Reply
from gradwire.server.rpc.lanes import Offer
from gradwire.server.rpc.train_stream import TrainStream
from gradwire.server.training.session import Session
from gradwire.v1 import service_pb2
from gradwire.wire.errors import Fenced, RunBusy, RunNotFound
from tests.faults.bare import (
    BareStream,
    Stub,
    create,
    delete,
    fingerprint,
    fresh_name,
    read_parameters,
    refusal_of,
    spec_of,
    write_parameters,
)
from tests.faults.gated import BULK, GatedDevice, gradient
from tests.faults.hosted import HostedServer, InBackground, eventually

HALF = BULK // 2


@pytest.fixture
def name(hosted_stub: Stub) -> str:
    name = fresh_name("fencing")
    create(hosted_stub, spec_of(name, BULK), gradient(BULK, 0))
    return name


def attach_again(stub: Stub, name: str) -> None:
    BareStream(stub, name, "worker").finish()


def take_over(stub: Stub, name: str) -> None:
    BareStream(stub, name, "other", takeover=True).finish()


def write(stub: Stub, name: str) -> None:
    write_parameters(stub, name, gradient(BULK, 7))


def write_state(stub: Stub, name: str) -> None:
    parts = list(stub.ReadState(service_pb2.ReadStateRequest(name=f"runs/{name}")))
    header = service_pb2.WriteStateHeader(name=f"runs/{name}", state=parts[0].header)
    requests = [service_pb2.WriteStateRequest(header=header)]
    requests += [service_pb2.WriteStateRequest(slice=part.slice) for part in parts[1:]]
    stub.WriteState(iter(requests))


Act = Callable[[Stub, str], None]


@pytest.mark.parametrize("act", [attach_again, take_over, write, write_state])
def test_the_older_stream_is_fenced_and_its_block_dropped(
    hosted: HostedServer, hosted_stub: Stub, device: GatedDevice, name: str, act: Act
) -> None:
    used_bytes = hosted.used_bytes
    older = BareStream(hosted_stub, name, "worker")
    epoch = older.attached.epoch
    older.send(1, np.atleast_2d(gradient(HALF, 1)), last=False, steps=1)
    assert older.receive().data, "the first half has been computed with and answered"
    act(hosted_stub, name)
    before = fingerprint(hosted_stub, name)
    # The second half comes too late, whether the server looks at it or not.
    older.send(1, np.atleast_2d(gradient(HALF, 2)), start=HALF)
    refusal = older.refusal()
    assert isinstance(refusal, Fenced)
    assert int(refusal.metadata["epoch"]) > epoch
    assert device.commits == 0
    assert fingerprint(hosted_stub, name) == before
    eventually(lambda: hosted.used_bytes == used_bytes, "the dropped block is freed")
    newer = BareStream(hosted_stub, name, "worker")
    assert newer.attached.last_sequence == 0
    assert newer.attached.epoch > epoch
    newer.finish()


def test_an_idle_stream_is_fenced_at_once(hosted_stub: Stub, name: str) -> None:
    older = BareStream(hosted_stub, name)
    newer = BareStream(hosted_stub, name)
    assert isinstance(older.refusal(), Fenced)  # without having sent anything
    assert newer.step(1, gradient(BULK, 1)).step == 1
    newer.finish()


def test_a_stream_fenced_while_its_first_answer_is_written_hears_of_it(
    hosted: HostedServer, hosted_stub: Stub, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    servicer = hosted.server.servicer
    make_answer = servicer._attached

    def fence_soon(session: Session, offer: Offer | None) -> bytes:
        hosted.loop.call_soon(session.run.fence, "in the middle of the write")
        return make_answer(session, offer)

    monkeypatch.setattr(servicer, "_attached", fence_soon)
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as caught:
            next(BareStream(hosted_stub, name, timeout=5).call)
        assert isinstance(refusal_of(caught.value), Fenced)


def test_a_deleted_run_ends_its_stream(hosted: HostedServer, hosted_stub: Stub, name: str) -> None:
    stream = BareStream(hosted_stub, name)
    stream.send(1, np.atleast_2d(gradient(HALF, 1)), last=False, steps=1)
    assert stream.receive().data
    assert delete(hosted_stub, name) == 0
    assert isinstance(stream.refusal(), RunNotFound)  # without having sent anything more
    eventually(lambda: hosted.used_bytes == 0, "run and block are freed")
    # The name is free again.
    create(hosted_stub, spec_of(name, BULK), gradient(BULK, 0))
    BareStream(hosted_stub, name).finish()


def test_another_worker_is_refused_unless_it_takes_over(hosted_stub: Stub, name: str) -> None:
    first = BareStream(hosted_stub, name, "first")
    with pytest.raises(grpc.RpcError) as caught:
        BareStream(hosted_stub, name, "second")
    refusal = refusal_of(caught.value)
    assert isinstance(refusal, RunBusy)
    assert refusal.metadata == {"attached_worker_id": "first"}
    assert first.step(1, gradient(BULK, 1)).step == 1, "the refused attachment has changed nothing"
    second = BareStream(hosted_stub, name, "second", takeover=True)
    assert isinstance(first.refusal(), Fenced)
    second.finish()
    BareStream(hosted_stub, name, "third").finish()  # a stream that ended in order leaves the run free


def test_a_commit_checks_the_epoch_under_the_lock(
    hosted: HostedServer, hosted_stub: Stub, device: GatedDevice, name: str
) -> None:
    """The older worker's block is whole and waits for its turn while another takes the run."""
    older = BareStream(hosted_stub, name, "older")
    run = hosted.run_of(name)
    older.send(1, np.atleast_2d(gradient(HALF, 1)), last=False, steps=1)
    assert older.receive().data
    with device.hold("copy") as gate, InBackground(lambda: read_parameters(hosted_stub, name)) as reading:
        gate.wait_entered()
        with InBackground(lambda: BareStream(hosted_stub, name, "newer", takeover=True)) as taking:
            hosted.wait_for_waiters(run, 1)
            older.send(1, np.atleast_2d(gradient(HALF, 2)), start=HALF)
            hosted.wait_for_waiters(run, 2)
            gate.release()
            newer = taking.result()
        reading.result()
    assert isinstance(older.refusal(), Fenced)
    assert device.commits == 0
    assert newer.attached.step == 0
    assert newer.step(1, gradient(BULK, 3)).step == 1
    newer.finish()


def test_a_block_computed_from_other_values_is_not_committed(
    hosted: HostedServer, hosted_stub: Stub, device: GatedDevice, name: str
) -> None:
    """Even if the stream did not learn that it has been fenced: what was answered would not be what is committed."""
    stream = BareStream(hosted_stub, name)
    stream.send(1, np.atleast_2d(gradient(HALF, 1)), last=False, steps=1)
    assert stream.receive().data
    run = hosted.run_of(name)

    def change_behind_its_back() -> None:
        run.version += 1

    hosted.call(change_behind_its_back)
    before = fingerprint(hosted_stub, name)
    stream.send(1, np.atleast_2d(gradient(HALF, 2)), start=HALF)
    refusal = stream.refusal()
    assert isinstance(refusal, Fenced)
    assert refusal.applied is False
    assert device.commits == 0
    assert fingerprint(hosted_stub, name) == before


def test_attaching_waits_for_a_commit_under_way(
    hosted: HostedServer, hosted_stub: Stub, device: GatedDevice, name: str
) -> None:
    older = BareStream(hosted_stub, name)
    with device.hold("commit") as gate:
        older.send_block(1, gradient(BULK, 1), slice_elements=BULK)
        gate.wait_entered()
        with InBackground(lambda: BareStream(hosted_stub, name)) as attaching:
            hosted.wait_for_waiters(hosted.run_of(name), 1)
            assert not attaching.done()
            gate.release()
            newer = attaching.result()
    assert (newer.attached.step, newer.attached.last_sequence) == (1, 1)
    refusal = older.refusal()
    assert isinstance(refusal, Fenced)
    assert refusal.applied is not False, "its block has been applied"
    newer.finish()


def test_replacing_a_run_ends_the_stream_of_the_old_one(hosted: HostedServer, hosted_stub: Stub, name: str) -> None:
    run_bytes = hosted.used_bytes
    older = BareStream(hosted_stub, name, "older")
    older.send(1, np.atleast_2d(gradient(HALF, 1)), last=False, steps=1)
    assert older.receive().data
    created = create(hosted_stub, spec_of(name, BULK), gradient(BULK, 5), replace=True)
    assert created.created
    older.send(1, np.atleast_2d(gradient(HALF, 2)), start=HALF)
    assert isinstance(older.refusal(), RunNotFound)
    assert np.array_equal(read_parameters(hosted_stub, name), gradient(BULK, 5))
    eventually(lambda: hosted.used_bytes == run_bytes, "only the new run is left")
    newer = BareStream(hosted_stub, name, "newer")
    assert (newer.attached.step, newer.attached.last_sequence) == (0, 0)
    newer.finish()


def test_a_fenced_client_says_so_and_can_come_back(hosted: HostedServer, hosted_stub: Stub) -> None:
    with connect(hosted.target) as server:
        run = server.create_run(fresh_name("comes-back"), {"w": gradient(BULK, 0)}, AMSGrad())
        run.step({"w": gradient(BULK, 1)})
        write_parameters(hosted_stub, run.name, gradient(BULK, 7))
        with pytest.raises(Fenced):
            run.step({"w": gradient(BULK, 2)})
        assert run.stale
        assert run.step({"w": gradient(BULK, 3)}).step == 2
        assert np.array_equal(run.params["w"], read_parameters(hosted_stub, run.name))


@pytest.mark.parametrize("has_left", [False, True])
@pytest.mark.parametrize("shared_memory", [False, True])
def test_who_is_fenced_while_an_answer_leaves_is_told_of_the_right_block(
    hosted: HostedServer, monkeypatch: pytest.MonkeyPatch, has_left: bool, shared_memory: bool
) -> None:
    """A client that has the receipt already waits for the answer to its next block, which nobody has looked at."""
    send = TrainStream.send

    async def fenced(self: TrainStream, reply: Reply) -> None:
        fences = reply.receipt is not None and reply.sequence == 2
        if has_left or not fences:
            await send(self, reply)
        if fences:
            raise Fenced("somebody has taken the run", applied=None)

    monkeypatch.setattr(TrainStream, "send", fenced)
    with connect(hosted.target, shared_memory=shared_memory) as server:
        run = server.create_run(fresh_name("told"), {"x": gradient(BULK, 0)}, AMSGrad())
        grads = {"x": gradient(BULK, 1)}
        for step in range(1, 3 if has_left else 2):
            assert run.step(grads).step == step
        with pytest.raises(Fenced) as caught:
            run.step(grads)
        assert caught.value.applied is not has_left
        assert run.describe().step == 2
        assert run.step(grads).step == 3, "neither lost nor doubled"
        server.delete_run(run.name)
