"""Shared runs where things go wrong: what is applied is what is told, and nothing is left behind."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gradwire.server.rounds import rounds, session
from gradwire.server.rounds.rounds import rounds_of
from gradwire.v1 import run_pb2, train_pb2
from tests.contract.bare import BareClient, Refusal, pack, refused
from tests.contract.shared_runs import ACCEPTED, STALE, UNDERSTANDS, Shared, Worker
from tests.faults.gated import BULK, GatedDevice
from tests.faults.hosted import HostedServer, eventually


@pytest.fixture
def device() -> GatedDevice:
    return GatedDevice()


@pytest.fixture
def hosted(device: GatedDevice) -> Iterator[HostedServer]:
    with HostedServer(device, stall_timeout_seconds=300.0) as server:
        yield server


@pytest.fixture
def bare(hosted: HostedServer) -> Iterator[BareClient]:
    with BareClient(hosted.target) as client:
        yield client


ONES = [1.0] * BULK


def shared_of(bare: BareClient, **options: Any) -> Shared:
    """Of BULK elements, so that its kernels leave the event loop and come to gates."""
    rules = {"quorum": 2, "deadline_seconds": 300, "stale": run_pb2.SharedRun.STALE_REJECT}
    return Shared(bare, [0.0] * BULK, **(rules | options))


def test_a_worker_that_waits_is_told_why_and_so_is_the_log(
    bare: BareClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "TELL_SECONDS", 0.02)
    monkeypatch.setattr(rounds, "_LONG_SECONDS", 0.0)
    caplog.set_level(logging.INFO, rounds.__name__)
    shared = Shared(bare, quorum=2, deadline_seconds=300)
    patient = bare.attach(shared.name, "a", understands=[*UNDERSTANDS, train_pb2.FEATURE_REASONED_WAIT])
    b = shared.attach("b")
    Worker(patient).send([1.0, 1.0])
    waits = [patient.receive().waiting for _ in range(3)]
    why = r"1 of 2; waits for b, last heard \d+ s ago"
    assert all(re.fullmatch(why, wait.reason) for wait in waits)
    assert 0.0 < waits[0].since_seconds < waits[1].since_seconds < waits[2].since_seconds
    (logged,) = caplog.messages
    assert re.fullmatch(f"runs/{shared.name}, round 1: {why}", logged)
    b.step_alone([1.0, 1.0])


def test_a_write_that_comes_before_a_round_can_be_applied_drops_it(hosted: HostedServer, bare: BareClient) -> None:
    """Its workers are fenced, and were not applied; neither knows of the other before the lock is free."""
    shared = shared_of(bare)
    run = hosted.run_of(shared.name)
    a, b = shared.attach("a"), shared.attach("b")
    hosted.locked(run)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(bare.write, shared.name, [run_pb2.Slice(data=pack([5.0] * BULK))])
        hosted.wait_for_waiters(run, 1)
        a.send(ONES)
        hosted.wait_for_waiters(run, 2)
        b.send(ONES)
        hosted.wait_for_waiters(run, 3)
        hosted.call(run.lock.release)
    assert writing.result().step == 0
    for worker in (a, b):
        with pytest.raises(Refusal) as caught:
            worker.answer()
        assert (caught.value.reason, caught.value.applied) == ("FENCED", "false")
    assert (shared.read(), bare.get(shared.name).step) == ([5.0] * BULK, 0)


def test_a_worker_that_dies_while_its_round_is_applied_gets_its_answer_later(
    hosted: HostedServer, bare: BareClient, device: GatedDevice
) -> None:
    shared = shared_of(bare)
    a, b = shared.attach("a"), shared.attach("b")
    a.send(ONES)
    with device.hold("commit") as gate:
        b.send(ONES)
        gate.wait_entered()
        a.stream.call.cancel()
        hosted.wait_cancelled()
    assert b.answer().contribution.contributors == 2
    a = shared.attach("a", resumes=1)
    assert (a.sequence, a.stream.attached.last_accepted_sequence) == (1, 1)
    a.stream.send(train_pb2.Gradients(sequence=1, last=True))
    again = a.answer()
    assert (again.repeated, again.contribution.kind, again.contribution.share) == (True, ACCEPTED, 0.5)
    assert a.params == b.params == [-1.0] * BULK


def test_what_comes_while_a_round_is_applied_belongs_to_the_next(
    hosted: HostedServer, bare: BareClient, device: GatedDevice
) -> None:
    """And is as old as it is when that has been applied."""
    shared = shared_of(bare, quorum=1)
    a, b = shared.attach("a"), shared.attach("b")
    used = hosted.used_bytes
    with device.hold("commit") as gate:
        a.send(ONES)
        gate.wait_entered()
        b.send(ONES)
        eventually(lambda: hosted.used_bytes == used + 2 * 4 * BULK, "it is there")
    assert a.answer().contribution.kind == ACCEPTED
    assert (b.answer().contribution.kind, b.step) == (STALE, 1)


def test_a_device_that_fails_in_a_round_ends_the_run_and_tells_all(bare: BareClient, device: GatedDevice) -> None:
    shared = shared_of(bare)
    a, b = shared.attach("a"), shared.attach("b")

    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("it broke")

    device.update = fail  # type: ignore[method-assign]
    a.send(ONES)
    b.send(ONES)
    for worker in (a, b):
        with pytest.raises(Refusal):
            worker.answer()
    refused("RUN_NOT_FOUND", lambda: bare.get(shared.name))


def test_who_does_not_read_holds_up_the_fourth_vector_until_it_is_given_up() -> None:
    size = 4 * 2**20  # 16 MiB: more than all buffers between server and client hold
    with HostedServer(stall_timeout_seconds=2.0) as hosted, BareClient(hosted.target) as bare:
        shared = Shared(bare, [0.0] * size, quorum=1, max_staleness=100)
        fast, *deaf = (shared.attach(name) for name in ("fast", "deaf-1", "deaf-2", "deaf-3"))
        run = hosted.run_of(shared.name)
        generations = hosted.call(lambda: rounds_of(run).generations)
        for step, worker in enumerate(deaf, 1):
            worker.send([], absent_tensors=[0])
            eventually(lambda step=step: bare.get(shared.name).step == step, "its round is applied")  # type: ignore[misc]
            eventually(lambda: hosted.call(lambda: generations.read), "its answer has begun")
        late = shared.attach("late", base_step=0)
        fast.send([1.0] * size)
        eventually(lambda: "has read an older answer" in shared.workers().waiting_for, "it is said who holds it up")
        found = shared.workers()
        assert "deaf-1" in found.waiting_for
        assert [each.waiting for each in found.workers if each.worker_id == "fast"] == [True]
        late.leave()
        receipt = fast.answer()
        assert (receipt.contribution.kind, receipt.step, set(fast.params)) == (ACCEPTED, 4, {-1.0})
        with pytest.raises(Refusal) as caught:
            deaf[0].answer()
        assert (caught.value.reason, caught.value.applied) == ("STALLED", "true")


def test_nothing_is_left_behind(hosted: HostedServer, bare: BareClient) -> None:
    before = hosted.used_bytes
    shared = shared_of(bare)
    with_run = hosted.used_bytes
    workers = [shared.attach(name) for name in "abc"]
    for worker in workers[:2]:
        worker.send(ONES)
    for worker in workers[:2]:
        worker.answer()
    workers[2].send(ONES, base={"base_step": 1})
    shared.until_waiting("c")
    workers[2].stream.call.cancel()
    for worker in workers[:2]:
        worker.leave()
    eventually(lambda: hosted.handlers() == 0, "all streams have ended")
    assert hosted.used_bytes - with_run == 4 * BULK, "of the contribution that waits for its worker, and of no other"
    hosted.delete(f"runs/{shared.name}")
    eventually(lambda: hosted.used_bytes == before, "all that the run held is free")


def test_encoded_parameters_go_with_their_run(hosted: HostedServer, bare: BareClient) -> None:
    before = hosted.used_bytes
    shared = shared_of(bare, quorum=1)
    coarse = shared.attach("a", parameter_encoding=run_pb2.ENCODING_BFLOAT16)
    coarse.send(ONES)
    list(coarse.stream.answer())
    coarse.leave()
    hosted.delete(f"runs/{shared.name}")
    eventually(lambda: hosted.used_bytes == before, "all that the run held is free")


def test_a_contribution_without_room_is_refused_and_others_go_on(hosted: HostedServer, bare: BareClient) -> None:
    shared = shared_of(bare)
    a, b = shared.attach("a"), shared.attach("b")
    budget = hosted.registry.budget
    with budget.reserve(budget.free_bytes - 2 * 4 * BULK + 1, "all but what a needs"):
        a.send(ONES)
        shared.until_waiting("a")
        b.send(ONES)
        refused("MEMORY_LIMIT_EXCEEDED", b.answer)
    b = shared.attach("b")
    b.send(ONES)
    assert [worker.answer().contribution.contributors for worker in (a, b)] == [2, 2]
