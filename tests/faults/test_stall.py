"""Promise: a peer that takes no replies loses its stream after the stall timeout, and costs nobody anything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest

from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc
from gradwire.wire.errors import Stalled
from tests.faults.bare import BareStream, Stub, create, fresh_name, read_parameters, refusal_of, spec_of
from tests.faults.gated import GatedDevice, gradient
from tests.faults.hosted import WAIT_SECONDS, HostedServer, eventually
from tests.faults.proxy import Direction, Proxy

SIZE = 2**22
"""16 MiB of float32: more than all buffers between server and client hold."""


def expect_freed(hosted: HostedServer, run_bytes: int) -> None:
    """Within the stall timeout (plus what a busy machine adds) only the runs themselves are counted."""
    eventually(lambda: hosted.handler_tasks() == 1, "gRPC is done with the calls that have ended")
    eventually(lambda: hosted.handlers() == 0, "the stalled call leaves its handler", 10)
    eventually(lambda: hosted.used_bytes == run_bytes, "what was staged is freed", 10)
    eventually(lambda: hosted.handler_tasks() == 0, "gRPC's own task for the call ends", 10)


def expect_run_is_usable(stub: Stub, name: str) -> None:
    """Another worker gets the run without a takeover, and its step works."""
    with_other = BareStream(stub, name, "other")
    assert with_other.attached.step == 0
    assert with_other.step(1, gradient(SIZE, 1), returns=3).step == 1
    with_other.finish()


def test_a_client_that_writes_and_never_reads_is_aborted(
    hosted: HostedServer, connect_bare: Callable[[str], Stub]
) -> None:
    name, stub = fresh_name("deaf"), connect_bare(hosted.target)
    create(stub, spec_of(name, SIZE), np.zeros(SIZE, np.float32))
    run_bytes = hosted.used_bytes
    deaf = BareStream(connect_bare(hosted.target), name, "deaf")
    deaf.send_block(1, gradient(SIZE, 0))
    eventually(lambda: hosted.used_bytes > run_bytes, "the block begins")
    # Others are served meanwhile: readers of the same run, and whoever works on another one.
    assert read_parameters(stub, name).size == SIZE
    other = fresh_name("other")
    create(stub, spec_of(other, 8), np.zeros(8, np.float32))
    stream = BareStream(stub, other)
    assert stream.step(1, gradient(8, 0)).step == 1
    stream.finish()
    stub.DeleteRun(service_pb2.DeleteRunRequest(name=f"runs/{other}"))
    assert hosted.handlers() == 1, "the deaf client was given up long before the stall timeout"

    expect_freed(hosted, run_bytes)
    expect_run_is_usable(stub, name)
    refusal = deaf.refusal()  # when it reads at last, it learns why
    assert isinstance(refusal, Stalled)
    assert refusal.applied is False  # what was answered early is not committed
    assert refusal.metadata["stall_timeout_seconds"] == "2.0"


def test_a_client_that_reads_one_byte_a_second_is_aborted(
    hosted: HostedServer, device: GatedDevice, connect_bare: Callable[[str], Stub]
) -> None:
    name, stub = fresh_name("slow"), connect_bare(hosted.target)
    # With SKIP nothing is answered before the block is whole, so all of the upload gets through at full speed.
    create(stub, spec_of(name, SIZE, run_pb2.NON_FINITE_POLICY_SKIP), np.zeros(SIZE, np.float32))
    run_bytes = hosted.used_bytes
    with Proxy(hosted.target) as proxy:
        slow = BareStream(connect_bare(proxy.target), name, "slow")
        with device.hold("commit") as gate:
            slow.send_block(1, gradient(SIZE, 0))
            gate.wait_entered()
            proxy.throttle(Direction.DOWN, 1)
        expect_freed(hosted, run_bytes)
        assert proxy.passed[Direction.DOWN] < SIZE
        # The block was whole, so it counts, whether or not its answer arrived.
        again = BareStream(stub, name, "slow")
        assert (again.attached.step, again.attached.last_sequence) == (1, 1)
        again.finish()
        slow.cancel()


@pytest.mark.parametrize("method", ["ReadParameters", "ReadState"])
def test_a_reader_that_stops_reading_is_aborted(hosted: HostedServer, hosted_stub: Stub, method: str) -> None:
    name = fresh_name("reader")
    create(hosted_stub, spec_of(name, SIZE), np.zeros(SIZE, np.float32))
    run_bytes = hosted.used_bytes
    request = getattr(service_pb2, f"{method}Request")(name=f"runs/{name}")
    answers = getattr(hosted_stub, method)(request)
    assert next(answers).WhichOneof("message") == "header"
    eventually(lambda: hosted.used_bytes > run_bytes, "the copy is made")
    expect_freed(hosted, run_bytes)
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    assert isinstance(refusal_of(caught.value), Stalled)


def test_a_reader_whose_connection_breaks_is_no_error_of_the_server(
    hosted: HostedServer, connect_bare: Callable[[str], Stub]
) -> None:
    name, stub = fresh_name("breaks"), connect_bare(hosted.target)
    create(stub, spec_of(name, SIZE), np.zeros(SIZE, np.float32))
    run_bytes = hosted.used_bytes
    with Proxy(hosted.target) as proxy:
        answers = connect_bare(proxy.target).ReadParameters(service_pb2.ReadParametersRequest(name=f"runs/{name}"))
        assert next(answers).WhichOneof("message") == "header"
        eventually(lambda: hosted.used_bytes > run_bytes, "the copy is made")
        proxy.cut()
        eventually(lambda: hosted.handler_tasks() == 0, "the call ends")
        answers.cancel()
    assert hosted.used_bytes == run_bytes


def requests_of(method: str, run: str) -> list[object]:
    """Those that come before somebody falls silent."""
    if method == "CreateRun":
        header = service_pb2.CreateRunHeader(spec=spec_of(fresh_name("silent"), SIZE), request_id="silent")
        return [service_pb2.CreateRunRequest(header=header)]
    if method == "WriteParameters":
        return [service_pb2.WriteParametersRequest(header=service_pb2.WriteParametersHeader(name=f"runs/{run}"))]
    if method == "WriteState":
        state = service_pb2.StateHeader(slots=["exp_avg", "exp_avg_sq", "max_exp_avg_sq"], tensor_steps=[0])
        return [service_pb2.WriteStateRequest(header=service_pb2.WriteStateHeader(name=f"runs/{run}", state=state))]
    if method == "ImportRun":
        first = service_pb2.ImportRunHeader(name=f"runs/{fresh_name('silent')}", request_id="silent")
        return [service_pb2.ImportRunRequest(header=first), service_pb2.ImportRunRequest(data=b"x")]
    return []


@pytest.mark.parametrize("silent_from", ["the beginning", "its header on"])
@pytest.mark.parametrize("method", ["CreateRun", "WriteParameters", "WriteState", "ImportRun", "Train"])
def test_a_client_that_sends_nothing_more_is_told_and_costs_nothing(method: str, silent_from: str) -> None:
    with HostedServer(stall_timeout_seconds=0.3) as hosted, grpc.insecure_channel(hosted.target) as channel:
        stub = service_pb2_grpc.OptimizerServiceStub(channel)
        name = fresh_name("silent")
        create(stub, spec_of(name, 8), np.zeros(8, np.float32))
        run_bytes = hosted.used_bytes
        silence = threading.Event()

        def requests() -> Iterator[object]:
            if silent_from == "its header on":
                yield from requests_of(method, name)
            silence.wait(WAIT_SECONDS)

        def answers() -> list[object]:
            answer = getattr(stub, method)(requests())
            return list(answer) if method == "Train" else [answer]

        try:
            with pytest.raises(grpc.RpcError) as caught:
                answers()
            refusal = refusal_of(caught.value)
            assert isinstance(refusal, Stalled)
            assert refusal.applied is False
            assert "nothing was sent" in refusal.message
            eventually(lambda: hosted.used_bytes == run_bytes, "what was reserved is freed")
        finally:
            silence.set()
