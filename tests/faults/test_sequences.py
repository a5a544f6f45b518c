"""Blocks are numbered by their worker; the last one again is remembered, all others but the next are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, RunNotFound, RunRolledBack, WorkerConflict, connect
from gradwire.v1 import train_pb2
from gradwire.wire.errors import InvalidSlice, SequenceMismatch
from tests.faults.bare import (
    BareStream,
    Stub,
    create,
    delete,
    fingerprint,
    fresh_name,
    read_parameters,
    spec_of,
    values_of,
)
from tests.faults.client_process import WORKER_ID, ClientProcess
from tests.faults.gated import gradient
from tests.faults.hosted import HostedServer
from tests.serving import ServerProcess

SIZE = 100_000
LAST, TRAJECTORY, NONE = train_pb2.RETURNS_LAST, train_pb2.RETURNS_TRAJECTORY, train_pb2.RETURNS_NONE


@pytest.fixture
def name(stub: Stub) -> str:
    name = fresh_name("sequences")
    create(stub, spec_of(name, SIZE), gradient(SIZE, 0))
    return name


@pytest.mark.parametrize("attached_anew", [False, True], ids=["same stream", "new stream"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("returns", [LAST, TRAJECTORY, NONE], ids=["last", "trajectory", "none"])
def test_the_last_sequence_again_brings_the_remembered_result(
    stub: Stub, name: str, returns: Any, steps: int, attached_anew: bool
) -> None:
    stream = BareStream(stub, name)
    stream.send_block(1, gradient(SIZE, 1, steps), returns=returns)
    first_parts, first = stream.answer()
    assert not first.repeated
    before = fingerprint(stub, name)
    for _ in range(2):
        if attached_anew:
            stream.cancel()
            stream = BareStream(stub, name)
            assert stream.attached.last_sequence == 1
        # What it is sent with does not matter any more.
        stream.send_block(1, gradient(SIZE, 99, 2), returns=LAST)
        parts, receipt = stream.answer()
        assert receipt.repeated
        receipt.repeated = False
        assert receipt == first
        if returns != NONE:
            assert np.array_equal(values_of(parts, SIZE), values_of(first_parts, SIZE))
        else:
            assert not any(part.data for part in parts)
    assert fingerprint(stub, name) == before
    assert stream.step(2, gradient(SIZE, 2)).step == steps + 1
    stream.finish()


@pytest.mark.parametrize(("sequence", "applied"), [(0, False), (1, True), (2, True), (5, False), (2**64 - 1, False)])
def test_a_sequence_out_of_order_is_refused(stub: Stub, name: str, sequence: int, applied: bool) -> None:
    stream = BareStream(stub, name)
    for number in (1, 2, 3):
        stream.step(number, gradient(SIZE, number))
    before = fingerprint(stub, name)
    stream.send_block(sequence, gradient(SIZE, 9))
    refusal = stream.refusal()
    assert isinstance(refusal, SequenceMismatch)
    assert refusal.applied is applied
    assert refusal.metadata["expected_sequence"] == "4"
    assert fingerprint(stub, name) == before


@pytest.mark.parametrize("sequence", [0, 2, 2**64 - 1])
def test_the_first_sequence_is_one(stub: Stub, name: str, sequence: int) -> None:
    stream = BareStream(stub, name)
    stream.send_block(sequence, gradient(SIZE, 9))
    refusal = stream.refusal()
    assert isinstance(refusal, SequenceMismatch)
    assert refusal.applied is False
    assert refusal.metadata["expected_sequence"] == "1"


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("offset", [2**64 - 1, 2**63, 2**32])
def test_an_offset_far_outside_is_refused(stub: Stub, name: str, offset: int, size: int) -> None:
    stream = BareStream(stub, name)
    stream.send(1, np.zeros((1, size), np.float32), start=offset, steps=1)
    refusal = stream.refusal()
    assert isinstance(refusal, InvalidSlice)
    assert refusal.applied is False


def test_each_worker_has_its_own_numbers(stub: Stub, name: str) -> None:
    for worker, number in [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2)]:
        stream = BareStream(stub, name, worker)
        assert stream.attached.last_sequence == number - 1
        stream.step(number, gradient(SIZE, number))
        stream.finish()
    assert fingerprint(stub, name)["step"] == 5


def test_the_numbers_go_on_in_a_new_process(process: ServerProcess, stub: Stub, name: str) -> None:
    twin = fresh_name("twin")
    create(stub, spec_of(twin, SIZE), gradient(SIZE, 0))
    with ClientProcess("two-steps", process.target, name, SIZE) as client:
        client.wait_for("two steps are made")
    with connect(process.target) as server, server.attach(name, worker_id=WORKER_ID) as run:
        assert run.step({"w": gradient(SIZE, 3)}).step == 3
        with server.attach(twin) as other:
            for seed in (1, 2, 3):
                other.step({"w": gradient(SIZE, seed)})
            assert np.array_equal(run.params["w"], other.params["w"])
    stream = BareStream(stub, name, WORKER_ID)
    assert stream.attached.last_sequence == 3
    stream.finish()


def test_a_run_that_was_made_anew_is_not_continued_silently(process: ServerProcess, stub: Stub) -> None:
    with connect(process.target) as server:
        run = server.create_run(fresh_name("anew"), {"w": gradient(SIZE, 0)}, AMSGrad(lr=0.01))
        for seed in (1, 2):
            run.step({"w": gradient(SIZE, seed)})
        delete(stub, run.name)
        create(stub, spec_of(run.name, SIZE), gradient(SIZE, 5))
        with pytest.raises(Exception, match="has been deleted"):
            run.step({"w": gradient(SIZE, 3)})
        for call in (lambda: run.step({"w": gradient(SIZE, 3)}), run.read, run.refresh, run.state_dict, run.describe):
            with pytest.raises(RunNotFound, match="another run now"):
                call()
        with pytest.raises(RunNotFound, match="another run now"):
            run.write(run.params)
        assert np.array_equal(read_parameters(stub, run.name), gradient(SIZE, 5)), "nothing has reached the new run"


def test_a_server_that_has_forgotten_the_worker_has_rolled_back(hosted: HostedServer, hosted_stub: Stub) -> None:
    """Nothing is sent again; who calls once more has decided to go on from what there is."""
    with connect(hosted.target) as server:
        run = server.create_run(fresh_name("forgotten"), {"w": gradient(SIZE, 0)}, AMSGrad(lr=0.01))
        for seed in (1, 2):
            run.step({"w": gradient(SIZE, seed)})
        before = read_parameters(hosted_stub, run.name)
        run.close()
        hosted.call(hosted.run_of(run.name)._workers.clear)
        with pytest.raises(RunRolledBack) as caught:
            run.step({"w": gradient(SIZE, 3)})
        assert caught.value.metadata == {"last_sequence": "0", "acknowledged_sequence": "2"}
        assert np.array_equal(read_parameters(hosted_stub, run.name), before), "nothing has been sent again"
        assert run.step({"w": gradient(SIZE, 3)}).step == 3
        assert np.array_equal(run.params["w"], read_parameters(hosted_stub, run.name))


def test_blocks_that_this_client_never_sent_are_a_conflict(process: ServerProcess, stub: Stub) -> None:
    with connect(process.target) as server:
        run = server.create_run(fresh_name("conflict"), {"w": gradient(SIZE, 0)}, AMSGrad(), worker_id="shared")
        run.step({"w": gradient(SIZE, 1)})
        stream = BareStream(stub, run.name, "shared")
        stream.step(2, gradient(SIZE, 2))
        stream.finish()
        with pytest.raises(Exception, match="no longer holds it"):
            run.step({"w": gradient(SIZE, 3)})
        # The interrupted block might be the one that was applied, but two of them cannot be.
        stream = BareStream(stub, run.name, "shared")
        stream.step(3, gradient(SIZE, 2))
        stream.finish()
        with pytest.raises(WorkerConflict):
            run.step({"w": gradient(SIZE, 3)})
