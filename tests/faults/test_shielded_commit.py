"""What has begun under a run's lock runs to its end, whoever is cancelled meanwhile, and keeps the lock until then."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gradwire.server.engine.run import Run
from gradwire.v1 import run_pb2, service_pb2, train_pb2
from tests.faults.bare import (
    BareStream,
    Stub,
    create,
    fingerprint,
    fresh_name,
    read_parameters,
    spec_of,
    value_slices,
    values_of,
)
from tests.faults.gated import BULK, GatedDevice, gradient
from tests.faults.hosted import HostedServer, InBackground, eventually


@pytest.fixture
def run(hosted: HostedServer, hosted_stub: Stub) -> Run:
    """A run whose commits leave the event loop."""
    name = fresh_name("shielded")
    # SKIP: the whole gradient is kept until it is applied.
    create(hosted_stub, spec_of(name, BULK, run_pb2.NON_FINITE_POLICY_SKIP), np.zeros(BULK, np.float32))
    return hosted.run_of(name)


def short_name(run: Run) -> str:
    return run.spec.name.removeprefix("runs/")


def test_shielded_commit(hosted: HostedServer, hosted_stub: Stub, device: GatedDevice, run: Run) -> None:
    """Cancelled while the kernel runs: the commit finishes, and nobody gets the run before it has."""
    name = short_name(run)
    first = BareStream(hosted_stub, name)
    with device.hold("commit") as gate:
        first.send_block(1, gradient(BULK, 1), returns=train_pb2.RETURNS_LAST)
        gate.wait_entered()
        first.cancel()
        with InBackground(lambda: BareStream(hosted_stub, name)) as attaching:
            hosted.wait_for_waiters(run, 1)
            assert device.commits == 0
            assert not attaching.done()
            gate.release()
            second = attaching.result()
    assert device.commits == 1
    assert (second.attached.step, second.attached.last_sequence) == (1, 1)
    # The same sequence again brings the remembered result and no second update.
    second.send_block(1, gradient(BULK, 1), returns=train_pb2.RETURNS_LAST)
    parts, receipt = second.answer()
    assert receipt.repeated
    assert receipt.step == 1
    assert np.array_equal(values_of(parts, BULK)[0], read_parameters(hosted_stub, name))
    assert device.commits == 1
    assert second.step(2, gradient(BULK, 2)).step == 2
    second.finish()

    # Two undisturbed steps give the same run, bit for bit.
    twin = fresh_name("twin")
    create(hosted_stub, spec_of(twin, BULK, run_pb2.NON_FINITE_POLICY_SKIP), np.zeros(BULK, np.float32))
    stream = BareStream(hosted_stub, twin)
    for sequence in (1, 2):
        stream.step(sequence, gradient(BULK, sequence))
    stream.finish()
    assert fingerprint(hosted_stub, name) == fingerprint(hosted_stub, twin)


def test_readers_wait_for_a_commit_whose_caller_is_gone(
    hosted: HostedServer, hosted_stub: Stub, device: GatedDevice, run: Run
) -> None:
    name = short_name(run)
    first = BareStream(hosted_stub, name)
    with device.hold("committed") as gate:  # the state has changed, what is remembered has not
        first.send_block(1, gradient(BULK, 1))
        gate.wait_entered()
        first.cancel()
        hosted.wait_cancelled()
        with InBackground(lambda: fingerprint(hosted_stub, name)) as reading:
            hosted.wait_for_waiters(run, 1)
            assert not reading.done()
            gate.release()
            seen = reading.result()
    assert seen == fingerprint(hosted_stub, name)
    assert (seen["step"], seen["tensor_steps"]) == (1, [1])


def test_an_attachment_given_up_while_it_waits_leaves_no_holder(
    hosted: HostedServer, hosted_stub: Stub, connect_bare: Callable[[str], Stub], device: GatedDevice, run: Run
) -> None:
    name = short_name(run)
    first = BareStream(hosted_stub, name, "first")
    other = connect_bare(hosted.target)
    with device.hold("commit") as gate:
        first.send_block(1, gradient(BULK, 1))
        gate.wait_entered()
        call = other.Train(
            iter([train_pb2.TrainRequest(attach=train_pb2.Attach(run=run.spec.name, worker_id="x", takeover=True))])
        )
        hosted.wait_for_waiters(run, 1)
        call.cancel()
        hosted.wait_for_waiters(run, 0)
    assert first.answer()[1].step == 1, "the worker that gave up has taken the run"
    first.finish()
    third = BareStream(hosted_stub, name, "third")  # RUN_BUSY if anybody still held it
    third.finish()


def test_a_block_given_up_while_it_waits_leaves_no_memory(
    hosted: HostedServer, hosted_stub: Stub, connect_bare: Callable[[str], Stub], device: GatedDevice, run: Run
) -> None:
    name, used_bytes = short_name(run), hosted.used_bytes
    worker = BareStream(connect_bare(hosted.target), name)
    with device.hold("copy") as gate, InBackground(lambda: read_parameters(hosted_stub, name)) as reading:
        gate.wait_entered()
        worker.send_block(1, gradient(BULK, 1), returns=train_pb2.RETURNS_TRAJECTORY)
        hosted.wait_for_waiters(run, 1)
        worker.cancel()
        gate.release()
        reading.result()
    eventually(lambda: hosted.handlers() == 0, "both calls leave their handlers")
    assert hosted.used_bytes == used_bytes


@pytest.mark.parametrize("operation", ["write", "copy"])
def test_memory_is_counted_until_the_thread_has_left_it(
    hosted: HostedServer, hosted_stub: Stub, device: GatedDevice, run: Run, operation: str
) -> None:
    name, used_bytes = short_name(run), hosted.used_bytes
    with device.hold(operation) as gate:
        if operation == "write":
            worker = BareStream(hosted_stub, name)
            worker.send(1, np.atleast_2d(gradient(BULK, 1))[:, :-1], last=False, steps=1)
            cancel: Callable[[], object] = worker.cancel
        else:
            call = hosted_stub.ReadParameters(service_pb2.ReadParametersRequest(name=run.spec.name))
            cancel = call.cancel
        gate.wait_entered()
        cancel()
        hosted.wait_cancelled()
        assert hosted.used_bytes == used_bytes + run.spec.vector_bytes
    eventually(lambda: hosted.used_bytes == used_bytes, "it is given back afterwards")


def test_a_replacement_given_up_while_the_old_run_commits_is_still_whole(
    hosted: HostedServer, hosted_stub: Stub, connect_bare: Callable[[str], Stub], device: GatedDevice, run: Run
) -> None:
    name = short_name(run)
    first = BareStream(hosted_stub, name)
    header = service_pb2.CreateRunHeader(spec=spec_of(name, BULK), request_id="again", replace=True)
    requests = [service_pb2.CreateRunRequest(header=header)]
    requests += [service_pb2.CreateRunRequest(slice=part) for part in value_slices(np.ones(BULK, np.float32))]
    with device.hold("commit") as gate:
        first.send_block(1, gradient(BULK, 1))
        gate.wait_entered()
        call = connect_bare(hosted.target).CreateRun.future(iter(requests))
        hosted.wait_for_waiters(run, 1)
        call.cancel()
        hosted.wait_cancelled()
    eventually(lambda: run.ended, "the old run ends")
    again = BareStream(hosted_stub, name)
    assert again.attached.step == 0
    assert again.step(1, gradient(BULK, 1)).step == 1
    again.finish()
    answer = hosted_stub.GetRun(service_pb2.GetRunRequest(name=run.spec.name)).run
    assert answer.step == 1
    assert answer.spec.dtype == run_pb2.DTYPE_FLOAT32
