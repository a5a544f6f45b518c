"""``--max-memory`` bounds runs, staging, results and copies together, and all of it is given back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from gradwire.server.engine.spec import TENSOR_BYTES
from gradwire.v1 import run_pb2, service_pb2, train_pb2
from gradwire.wire.errors import GradwireError, InternalError, MemoryLimitExceeded, ResultTooLarge
from gradwire.wire.service import MAX_MESSAGE_BYTES
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
    values_of,
    write_parameters,
)
from tests.faults.conftest import check_nothing_is_left
from tests.faults.gated import GatedDevice, gradient
from tests.faults.hosted import HostedServer, eventually
from tests.serving import ServerProcess

SIZE = 50_000
VECTOR_BYTES = SIZE * 4
RUN_BYTES = 4 * VECTOR_BYTES + TENSOR_BYTES
"""Parameters, the three slots of AMSGrad, and what a tensor's name and shape count."""


@pytest.fixture
def tight(device: GatedDevice) -> Iterator[HostedServer]:
    """A server with room for one run and two more vectors, and for results of three."""
    limits: dict[str, Any] = {"max_memory": RUN_BYTES + 2 * VECTOR_BYTES, "max_result": 3 * VECTOR_BYTES}
    with HostedServer(device, stall_timeout_seconds=1.0, **limits) as server:
        yield server
        check_nothing_is_left(server)


@pytest.fixture
def tight_stub(tight: HostedServer, connect_bare: Callable[[str], Stub]) -> Stub:
    return connect_bare(tight.target)


@pytest.fixture
def name(tight_stub: Stub) -> str:
    name = fresh_name("tight")
    create(tight_stub, spec_of(name, SIZE, run_pb2.NON_FINITE_POLICY_SKIP), gradient(SIZE, 0))
    return name


HALVES: Any = {"slice_elements": SIZE // 2}
"""A block that comes in one message need not be kept."""


def refusal(call: Callable[[], object]) -> GradwireError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return refusal_of(caught.value)


def write_state(stub: Stub, name: str) -> service_pb2.WriteStateResponse:
    header = service_pb2.StateHeader(tensor_steps=[0], slots=["exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
    message = service_pb2.WriteStateHeader(name=f"runs/{name}", state=header)
    return stub.WriteState(iter([service_pb2.WriteStateRequest(header=message)]))


@pytest.mark.parametrize(
    "ask",
    [
        lambda stub, name: create(stub, spec_of(fresh_name("second"), SIZE), gradient(SIZE, 0)),
        lambda stub, name: create(stub, spec_of(name, SIZE), gradient(SIZE, 0), replace=True),
        lambda stub, name: list(stub.ReadState(service_pb2.ReadStateRequest(name=f"runs/{name}"))),
        lambda stub, name: write_state(stub, name),
        lambda stub, name: BareStream(stub, name).step(1, gradient(SIZE, 1, 3), **HALVES),
        lambda stub, name: BareStream(stub, name).step(
            1, gradient(SIZE, 1, 2), returns=train_pb2.RETURNS_TRAJECTORY, **HALVES
        ),
    ],
    ids=["second run", "replacement", "copy of the state", "new state", "block", "trajectory"],
)
def test_what_does_not_fit_is_refused(
    tight: HostedServer, tight_stub: Stub, name: str, ask: Callable[[Stub, str], object]
) -> None:
    refused = refusal(lambda: ask(tight_stub, name))
    assert isinstance(refused, MemoryLimitExceeded)
    assert refused.applied is False
    assert int(refused.metadata["needed_bytes"]) > int(refused.metadata["free_bytes"])
    eventually(lambda: tight.used_bytes == RUN_BYTES, "nothing of it stays reserved")
    stream = BareStream(tight_stub, name)
    assert stream.step(1, gradient(SIZE, 1), returns=train_pb2.RETURNS_TRAJECTORY).step == 1, "what fits still works"
    stream.finish()


def test_staging_results_and_copies_share_the_bound(tight: HostedServer, tight_stub: Stub, name: str) -> None:
    stream = BareStream(tight_stub, name)
    stream.step(1, gradient(SIZE, 1), returns=train_pb2.RETURNS_TRAJECTORY, **HALVES)
    # The gradient's place is kept for the next block, the trajectory for a repeat: no room for a copy or new values.
    assert tight.used_bytes == RUN_BYTES + 2 * VECTOR_BYTES
    assert isinstance(refusal(lambda: read_parameters(tight_stub, name)), MemoryLimitExceeded)
    assert isinstance(refusal(lambda: write_parameters(tight_stub, name, gradient(SIZE, 2))), MemoryLimitExceeded)
    stream.step(2, gradient(SIZE, 2), returns=train_pb2.RETURNS_LAST)  # what the last block returned is forgotten
    assert tight.used_bytes == RUN_BYTES + VECTOR_BYTES
    assert read_parameters(tight_stub, name).size == SIZE
    stream.finish()
    eventually(lambda: tight.used_bytes == RUN_BYTES, "the stream's own memory is freed")


def test_a_second_state_is_counted_and_goes_without_where_there_is_no_room(
    tight: HostedServer, tight_stub: Stub, connect_bare: Callable[[str], Stub]
) -> None:
    """Slices are answered at once where there is room for the new state, and after the commit where there is none."""
    name = fresh_name("early")
    create(tight_stub, spec_of(name, SIZE), gradient(SIZE, 0))
    stream = BareStream(tight_stub, name)
    parts: list[train_pb2.Parameters] = []
    for sequence in (1, 2):
        stream.send_block(sequence, gradient(SIZE, sequence), **HALVES)
        parts, receipt = stream.answer()
        assert receipt.step == sequence
        assert tight.used_bytes == RUN_BYTES + VECTOR_BYTES
    assert len(parts) == 1
    expected = read_parameters(tight_stub, name)
    assert np.array_equal(values_of(parts, SIZE)[0], expected)
    stream.finish()
    with HostedServer(max_memory=20 * VECTOR_BYTES) as roomy:
        stub = connect_bare(roomy.target)
        create(stub, spec_of(name, SIZE), gradient(SIZE, 0))
        stream = BareStream(stub, name)
        for sequence in (1, 2):
            stream.send_block(sequence, gradient(SIZE, sequence), **HALVES)
            parts, receipt = stream.answer()
            assert len(parts) == 2
        assert np.array_equal(values_of(parts, SIZE)[0], expected)
        # The new state's, and the gradients of the chunk that came in two parts.
        assert roomy.used_bytes == RUN_BYTES + 5 * VECTOR_BYTES
        stream.finish()
        eventually(lambda: roomy.used_bytes == RUN_BYTES, "the stream's own memory is freed")


def test_a_trajectory_that_would_not_be_remembered_is_refused(tight: HostedServer, tight_stub: Stub, name: str) -> None:
    stream = BareStream(tight_stub, name)
    stream.send_block(1, gradient(SIZE, 1, 4)[:, :5], returns=train_pb2.RETURNS_TRAJECTORY)
    refused = stream.refusal()
    assert isinstance(refused, ResultTooLarge)
    assert refused.metadata["max_bytes"] == str(3 * VECTOR_BYTES)


def test_the_scalars_of_a_long_block_count(connect_bare: Callable[[str], Stub]) -> None:
    """A million steps of one element: 4 MiB of gradients, 16 MiB of step sizes and the like."""
    steps = 2**20
    with HostedServer(max_memory=16 * 2**20) as server:
        stub, name = connect_bare(server.target), fresh_name("long")
        create(stub, spec_of(name, 1), np.zeros(1, np.float32))
        stream = BareStream(stub, name)
        stream.send_block(1, np.ones((steps, 1), np.float32), returns=train_pb2.RETURNS_NONE)
        assert isinstance(stream.refusal(), MemoryLimitExceeded)
        stream = BareStream(stub, name)
        assert stream.step(1, np.ones((steps // 8, 1), np.float32)).step == steps // 8
        stream.finish()
        check_nothing_is_left(server)


class ExhaustedDevice(GatedDevice):
    """Has no memory for arrays of ``rows`` rows after the first ``spare`` of them."""

    rows, spare = 0, 0

    def allocate(self, rows: int, length: int, dtype: np.dtype[Any]) -> Any:
        if rows == self.rows:
            self.spare -= 1
            if self.spare < 0:
                raise MemoryError
        return super().allocate(rows, length, dtype)


@pytest.mark.parametrize("spare", [0, 1, 3], ids="after {} vectors".format)
def test_a_run_that_the_device_has_no_room_for_leaves_nothing_reserved(
    connect_bare: Callable[[str], Stub], spare: int
) -> None:
    device = ExhaustedDevice()
    with HostedServer(device) as server:
        device.rows, device.spare = 1, spare
        stub = connect_bare(server.target)
        refused = refusal(lambda: create(stub, spec_of(fresh_name("full"), SIZE), gradient(SIZE, 0)))
        assert isinstance(refused, InternalError)
        assert server.used_bytes == 0


@pytest.mark.parametrize("policy", [run_pb2.NON_FINITE_POLICY_SKIP, run_pb2.NON_FINITE_POLICY_REJECT])
@pytest.mark.parametrize("spare", [0, 1], ids=["no trajectory", "no gradients"])
def test_a_block_that_the_device_has_no_room_for_leaves_nothing_reserved(
    connect_bare: Callable[[str], Stub], spare: int, policy: run_pb2.NonFinitePolicy.ValueType
) -> None:
    device = ExhaustedDevice()
    with HostedServer(device) as server:
        stub, name = connect_bare(server.target), fresh_name("full")
        create(stub, spec_of(name, SIZE, policy), gradient(SIZE, 0))
        before = fingerprint(stub, name)
        device.rows, device.spare = 3, spare
        stream = BareStream(stub, name)
        stream.send_block(1, gradient(SIZE, 1, 3), returns=train_pb2.RETURNS_TRAJECTORY, **HALVES)
        assert isinstance(stream.refusal(), InternalError)
        eventually(lambda: server.used_bytes == RUN_BYTES, "nothing of the block stays reserved")
        assert fingerprint(stub, name) == before
        check_nothing_is_left(server)


def test_a_message_of_more_than_16_mib_is_refused(process: ServerProcess, stub: Stub) -> None:
    name, size = fresh_name("huge"), 5 * 2**20
    create(stub, spec_of(name, size), np.zeros(size, np.float32))
    before = fingerprint(stub, name)
    stream = BareStream(stub, name)
    stream.send_block(1, np.ones(size, np.float32), slice_elements=MAX_MESSAGE_BYTES // 4 + 2**16)
    with pytest.raises(grpc.RpcError) as caught:
        stream.answer()
    call: Any = caught.value
    assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert fingerprint(stub, name) == before
    stream = BareStream(stub, name, "another")
    assert stream.step(1, np.ones(size, np.float32), slice_elements=2**21).step == 1
    stream.finish()
    delete(stub, name)


def test_a_slow_upload_keeps_nobody_waiting(stub: Stub) -> None:
    name, other = fresh_name("slow-upload"), fresh_name("fast")
    for run in (name, other):
        create(stub, spec_of(run, SIZE), gradient(SIZE, 0))
    slow = BareStream(stub, name)
    slow.send(1, np.atleast_2d(gradient(SIZE, 1)[:10]), last=False, steps=1)
    assert slow.receive().data
    # The block is open. Its run can be read, and other runs make steps.
    assert np.array_equal(read_parameters(stub, name), gradient(SIZE, 0))
    assert fingerprint(stub, name)["step"] == 0
    fast = BareStream(stub, other)
    for sequence in range(1, 6):
        assert fast.step(sequence, gradient(SIZE, sequence)).step == sequence
    fast.finish()
    slow.send(1, np.atleast_2d(gradient(SIZE, 1)[10:]), start=10)
    assert slow.answer()[1].step == 1
    slow.finish()


def first_answer(call: Any) -> object:
    try:
        return next(call)
    except grpc.RpcError as error:
        return refusal_of(error)


def test_the_process_stays_small_whatever_deaf_readers_ask_for(connect_bare: Callable[[str], Stub]) -> None:
    """Twenty of them at once, again and again; there is room for the copies of five."""
    mib, size, stall_seconds = 2**20, 2 * 2**20, 1
    with ServerProcess("--max-memory", "64MiB", "--stall-timeout", str(stall_seconds), forked=False) as server:
        stub, name = connect_bare(server.target), fresh_name("asked-for")
        create(stub, spec_of(name, size, amsgrad=False), np.zeros(size, np.float32))
        read_parameters(stub, name)
        before = server.rss_bytes()
        for _ in range(3):
            request = service_pb2.ReadParametersRequest(name=f"runs/{name}")
            asked = time.monotonic()
            deaf = [connect_bare(server.target).ReadParameters(request) for _ in range(20)]
            answers = [first_answer(call) for call in deaf]
            # Who is given up makes room: on a slow machine the last of the twenty may ask after that.
            sittings = 1 + int((time.monotonic() - asked) / stall_seconds)
            refused = sum(isinstance(answer, MemoryLimitExceeded) for answer in answers)
            assert refused >= 20 - 5 * sittings
            grown = server.rss_bytes() - before  # a message or two for each wait in gRPC, too
            assert grown < (100 + 40 * sittings) * mib, "copies for all would be 160 MiB in each round"

            def readable() -> bool:
                try:
                    return read_parameters(stub, name).size == size
                except grpc.RpcError:
                    return False

            eventually(readable, "the deaf readers are given up")
