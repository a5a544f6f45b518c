"""Shared runs over the end of their server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradwire.v1 import run_pb2, service_pb2, train_pb2
from tests.contract.bare import BareClient, pack, refused
from tests.contract.shared_runs import ACCEPTED, STALE, Shared, Worker
from tests.server.durability.lasting import LastingServer

JOURNAL = {"durability": run_pb2.DURABILITY_JOURNAL}
SNAPSHOT = {"durability": run_pb2.DURABILITY_SNAPSHOT}


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[LastingServer]:
    with LastingServer(tmp_path) as server:
        yield server


@pytest.fixture
def bare(lasting: LastingServer) -> Iterator[BareClient]:
    with BareClient(lasting.target) as client:
        yield client


def together(*workers: Worker, values: list[float]) -> None:
    """A round of them all."""
    for number, worker in enumerate(workers):
        worker.send([value * (number + 1) for value in values], weight=1.0 + number)
    for worker in workers:
        assert worker.answer().contribution.kind == ACCEPTED


def digest(shared: Shared) -> str:
    request = service_pb2.DigestRunRequest(name=f"runs/{shared.name}")
    return str(shared.bare.call("DigestRun", request).sha256)


def test_rounds_that_were_answered_come_back_and_the_open_one_is_gone(lasting: LastingServer, bare: BareClient) -> None:
    adam: Any = run_pb2.Group(tensors=[run_pb2.Tensor(name="w", shape=[2])], adam=run_pb2.Adam(amsgrad=True))
    shared = Shared(bare, quorum=2, deadline_seconds=300, spec={"groups": [adam], **JOURNAL, "clip_norm": 0.5})
    a, b = shared.attach("a"), shared.attach("b")
    together(a, b, values=[1.0, -2.0])
    together(a, b, values=[0.1, 5.0])
    before = digest(shared)
    a.send([9.0, 9.0])
    shared.until_waiting("a")
    lasting.restart()
    assert digest(shared) == before
    a, b = shared.attach("a", resumes=3), shared.attach("b")
    assert (a.stream.attached.waiting_sequence, a.sequence, a.stream.attached.last_accepted_sequence) == (0, 2, 2)
    assert shared.workers().round == 3
    b.stream.send(train_pb2.Gradients(sequence=2, last=True))
    again = b.answer()
    assert (again.repeated, again.contribution.round, again.contribution.contributors) == (True, 2, 2)
    assert again.contribution.share == 2 / 3
    together(a, b, values=[1.0, 1.0])
    assert a.params == shared.read()


def test_who_was_part_of_the_last_round_is_waited_for_after_a_start(lasting: LastingServer, bare: BareClient) -> None:
    shared = Shared(bare, deadline_seconds=300, lease_seconds=300, spec=JOURNAL)
    a, b = shared.attach("a"), shared.attach("b")
    together(a, b, values=[1.0, 1.0])
    lasting.restart()
    a = shared.attach("a")
    a.send([2.0, 2.0])
    shared.until_waiting("a")
    assert shared.workers().waiting_for.startswith("1 of 2; waits for b")
    b = shared.attach("b")
    b.send([2.0, 2.0])
    assert [worker.answer().contribution.contributors for worker in (a, b)] == [2, 2]


def test_a_drain_closes_no_round_and_says_so(lasting: LastingServer, bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, deadline_seconds=300, spec=JOURNAL)
    a, b = shared.attach("a"), shared.attach("b")
    together(a, b, values=[1.0, 1.0])
    a.send([4.0, 4.0])
    shared.until_waiting("a")
    lasting.stop()
    refused("DRAINING", a.answer)
    lasting.start()
    a, b = shared.attach("a", resumes=2), shared.attach("b")
    assert (a.stream.attached.waiting_sequence, a.sequence) == (0, 1)
    together(a, b, values=[1.0, 1.0])


def test_steps_that_were_lost_are_told(lasting: LastingServer, bare: BareClient) -> None:
    shared = Shared(bare, quorum=1, spec=SNAPSHOT)
    a = shared.attach("a")
    a.step_alone([1.0, 1.0])
    bare.call("SaveSnapshot", service_pb2.SaveSnapshotRequest(name=f"runs/{shared.name}", label="kept"))
    a.step_alone([1.0, 1.0])
    step, epoch = a.step, a.epoch
    lasting.restart()
    assert "steps 2 to 2 are lost" in bare.get(shared.name).loss
    a = shared.attach("a")
    assert (a.stream.attached.last_accepted_sequence, a.stream.attached.epoch > epoch) == (1, True)
    receipt = a.step_alone([1.0, 1.0], base={"base_step": step, "base_epoch": epoch})
    assert (receipt.contribution.kind, receipt.contribution.reason) == (STALE, "HISTORY_CHANGED")


def test_steps_that_a_power_cut_took_with_their_marks_are_told(lasting: LastingServer, bare: BareClient) -> None:
    """What was acknowledged is noted without a flush: the older marks are back after a power cut."""
    shared = Shared(bare, quorum=1, spec=SNAPSHOT)
    marks = lasting.data / "acknowledged"
    before = marks.read_bytes()
    a = shared.attach("a")
    a.step_alone([1.0, 1.0])
    step, epoch = a.step, a.epoch
    lasting.kill()
    marks.write_bytes(before)
    lasting.start()
    b = shared.attach("b")
    assert (b.stream.attached.step, bare.get(shared.name).loss) == (0, "")
    assert b.stream.attached.epoch > epoch
    receipt = b.step_alone([1.0, 1.0], base={"base_step": step, "base_epoch": epoch})
    assert (receipt.contribution.kind, receipt.contribution.reason) == (STALE, "HISTORY_CHANGED")


def test_after_an_orderly_end_workers_go_on_and_after_the_next_crash_they_are_told(
    lasting: LastingServer, bare: BareClient
) -> None:
    shared = Shared(bare, quorum=1, spec=SNAPSHOT)
    a = shared.attach("a")
    a.step_alone([1.0, 1.0])
    lasting.stop()
    lasting.start()
    base = {"base_step": a.step, "base_epoch": a.epoch}
    a = shared.attach("a")
    assert a.step_alone([1.0, 1.0], base=base).contribution.kind == ACCEPTED
    epoch = a.epoch
    lasting.restart()
    assert shared.attach("a").stream.attached.epoch > epoch


def test_a_run_whose_epoch_cannot_rise_is_not_served(lasting: LastingServer, bare: BareClient) -> None:
    shared = Shared(bare, quorum=1, spec=SNAPSHOT)
    epoch = shared.attach("a").epoch
    lasting.kill()
    lasting.start("journal.before-commit=full@2")  # the first one is of the journal, of which nothing is cut off
    refused("RUN_DAMAGED", lambda: bare.get(shared.name))
    lasting.restart()
    assert shared.attach("a").epoch > epoch


def test_a_shared_run_goes_back_forks_and_travels(lasting: LastingServer, bare: BareClient) -> None:
    shared = Shared(bare, quorum=1, spec=JOURNAL)
    a = shared.attach("a")
    a.step_alone([1.0, 1.0])
    name = f"runs/{shared.name}"
    saved = bare.call("SaveSnapshot", service_pb2.SaveSnapshotRequest(name=name, label="kept")).snapshot
    a.step_alone([1.0, 1.0])
    assert bare.call("RollBack", service_pb2.RollBackRequest(name=name, snapshot_id=saved.id)).step == 1
    refused("FENCED", lambda: a.stream.receive())
    a = shared.attach("a")
    assert a.step_alone([2.0, 2.0]).contribution.kind == ACCEPTED
    assert a.params == [-3.0, -3.0]
    fork = bare.call("ForkRun", service_pb2.ForkRunRequest(name=name, new_name="runs/fork", request_id="f")).run
    assert fork.spec.shared.quorum == 1
    exported = bare.call("ExportRun", service_pb2.ExportRunRequest(name=name))
    header = service_pb2.ImportRunHeader(name="runs/imported", request_id="i")
    requests = [service_pb2.ImportRunRequest(header=header)]
    requests += [service_pb2.ImportRunRequest(data=part.data) for part in exported if part.data]
    imported = bare.call("ImportRun", iter(requests)).run
    assert (imported.step, imported.spec.shared.quorum) == (2, 1)
    with bare.attach("imported", "b", understands=[train_pb2.FEATURE_SHARED_RUN]) as stream:
        assert stream.attached.last_sequence == 0
    assert bare.read("imported")[1] == [-3.0, -3.0]
    assert pack(bare.read("fork")[1]) == pack([-3.0, -3.0])
