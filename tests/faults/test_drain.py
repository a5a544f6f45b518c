"""SIGTERM: what has arrived whole is finished and answered, all else is refused as DRAINING, and soon it is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradwire.client import AMSGrad, ConnectionLost, Draining, RetryPolicy, connect
from gradwire.v1 import service_pb2
from tests.faults.bare import (
    BareStream,
    Stub,
    channel_to,
    create,
    fresh_name,
    read_parameters,
    refusal_of,
    spec_of,
    write_parameters,
)
from tests.faults.gated import BULK, GatedDevice, gradient
from tests.faults.hosted import HostedServer, InBackground, eventually
from tests.serving import ServerProcess

HALF = BULK // 2


@pytest.fixture
def draining(device: GatedDevice, caplog: pytest.LogCaptureFixture) -> Iterator[HostedServer]:
    """A server that the test drains."""
    with HostedServer(device, drain_timeout_seconds=20.0) as server:
        yield server
    assert not [record for record in caplog.get_records("call") if record.levelname == "ERROR"]


@pytest.fixture
def draining_stub(draining: HostedServer, connect_bare: Callable[[str], Stub]) -> Stub:
    return connect_bare(draining.target)


def make_run(stub: Stub) -> str:
    name = fresh_name("drain")
    create(stub, spec_of(name, BULK), gradient(BULK, 0))
    return name


def expect_draining(call: Callable[[], object]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    refusal = refusal_of(caught.value)
    assert isinstance(refusal, Draining)
    assert refusal.applied is False


def test_a_drain(
    draining: HostedServer, draining_stub: Stub, device: GatedDevice, connect_bare: Callable[[str], Stub]
) -> None:
    stub = draining_stub
    whole, half, idle = make_run(stub), make_run(stub), make_run(stub)
    server_runs = {name: draining.run_of(name) for name in (whole, half, idle)}
    whole_stream, half_stream, idle_stream = (BareStream(stub, name) for name in (whole, half, idle))
    half_stream.send(1, np.atleast_2d(gradient(HALF, 1)), last=False, steps=1)
    assert half_stream.receive().data
    with device.hold("commit") as gate:
        whole_stream.send_block(1, gradient(BULK, 1), slice_elements=BULK)
        gate.wait_entered()
        with InBackground(draining.drain) as drain:
            # Streams that wait for their client are told at once; what is half there was not applied.
            for stream in (half_stream, idle_stream):
                refusal = stream.refusal()
                assert isinstance(refusal, Draining)
                assert refusal.applied is False
            # Whoever comes now is told too, on an old connection or a new one.
            for other in (stub, connect_bare(draining.target)):
                expect_draining(lambda other=other: BareStream(other, idle))  # type: ignore[misc]
                expect_draining(lambda other=other: make_run(other))  # type: ignore[misc]
                expect_draining(lambda other=other: write_parameters(other, idle, gradient(BULK, 1)))  # type: ignore[misc]
            with channel_to(draining.target) as channel:
                health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert read_parameters(stub, idle).size == BULK, "what is there can still be fetched"
            assert not drain.done()
            gate.release()
            # The step whose last slice had arrived is finished and answered.
            _, receipt = whole_stream.answer()
            assert receipt.step == 1
            assert isinstance(whole_stream.refusal(), Draining)
    assert {name: run.step for name, run in server_runs.items()} == {whole: 1, half: 0, idle: 0}


def test_a_drain_is_not_held_up_by_peers_that_do_not_read(
    device: GatedDevice, connect_bare: Callable[[str], Stub], caplog: pytest.LogCaptureFixture
) -> None:
    size = 2**22
    with HostedServer(device, drain_timeout_seconds=1.0) as server:
        stub, name = connect_bare(server.target), fresh_name("deaf")
        create(stub, spec_of(name, size), np.zeros(size, np.float32))
        run_bytes = server.used_bytes
        answers = stub.ReadParameters(service_pb2.ReadParametersRequest(name=f"runs/{name}"))
        assert next(answers).WhichOneof("message") == "header"
        eventually(lambda: server.used_bytes > run_bytes, "the copy is made")
        started = time.monotonic()
        server.drain()
        assert time.monotonic() - started < 20
        answers.cancel()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_sigterm_ends_the_process_although_streams_are_attached(connect_bare: Callable[[str], Stub]) -> None:
    with ServerProcess(module="tests.far_server") as server:
        stub = connect_bare(server.target)
        stream, half = BareStream(stub, make_run(stub)), BareStream(stub, make_run(stub))
        stream.step(1, gradient(BULK, 1))
        half.send(1, np.atleast_2d(gradient(HALF, 1)), last=False, steps=1)
        half.receive()
        server.terminate()
        server.terminate()
        assert isinstance(stream.refusal(), Draining)
        assert isinstance(half.refusal(), Draining)
        while server.process.poll() is None:
            server.terminate()  # again and again, until the very end
            time.sleep(0.001)
        assert server.process.wait(30) == 0
        assert not [line for line in server.log if "ERROR" in line or "Traceback" in line], server.log


def test_an_idle_server_ends_at_once() -> None:
    with ServerProcess("--drain-timeout", "100", module="tests.far_server") as server:
        server.terminate()
        assert server.process.wait(30) == 0


def test_a_client_learns_that_its_step_was_not_applied(draining: HostedServer, device: GatedDevice) -> None:
    with connect(draining.target) as server:
        patience = RetryPolicy(deadline_seconds=1.0)
        size = 400_000  # several slices
        params = {"w": gradient(size, 0)}
        run = server.create_run(fresh_name("client"), params, AMSGrad(), retry=patience, non_finite="skip")
        server_run = draining.run_of(run.name)
        with device.hold("write") as gate:
            drained = threading.Event()

            def drain() -> None:
                gate.wait_entered()
                with InBackground(draining.drain):
                    eventually(lambda: draining.registry.draining, "the drain begins")
                    gate.release()
                drained.set()

            with InBackground(drain), pytest.raises((Draining, ConnectionLost)) as caught:
                run.step({"w": gradient(size, 1)})
        assert drained.is_set()
        assert caught.value.applied is False
        assert server_run.step == 0
