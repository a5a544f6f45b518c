"""INT8 under faults: exactly once with the same bytes, copies that stay equal, and hostile bytes that harm nobody."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from gradwire.client import AMSGrad, Run, Server
from gradwire.client.encodings.parameters import DeltaParameters
from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.errors import GradwireError, InvalidSlice, NonFiniteGradient, ProtocolViolation
from tests.faults.bare import BareStream, Stub, attach_when_free, create, fingerprint, fresh_name, refusal_of, spec_of
from tests.faults.gated import GatedDevice, gradient
from tests.faults.hosted import HostedServer
from tests.faults.proxy import Direction, Proxy
from tests.faults.test_exactly_once import cut_before_the_receipt, cut_in_the_commit, cut_in_the_update

Floats = npt.NDArray[np.float32]

SIZE = 1_200_000
"""Three slices of INT8, and enough elements for commits to leave the event loop."""

INT8: dict[str, Any] = {"gradient_encoding": "int8", "parameter_encoding": "int8"}

Fault = Callable[[HostedServer, GatedDevice, Proxy, int], AbstractContextManager[None]]


# --- exactly once ----------------------------------------------------------------------------------------------------


@contextmanager
def cut_in_the_upload(hosted: HostedServer, device: GatedDevice, proxy: Proxy, steps: int) -> Iterator[None]:
    """When some slices have been encoded, and others have not."""
    proxy.cut_after(Direction.UP, SIZE * steps * 2 // 3)
    yield


@contextmanager
def cut_in_the_reply(hosted: HostedServer, device: GatedDevice, proxy: Proxy, steps: int) -> Iterator[None]:
    """After more than half of the differences' bytes."""
    proxy.cut_after(Direction.DOWN, SIZE * 2 // 3)
    yield


@pytest.mark.parametrize("steps", [1, 3], ids=["one step", "three steps"])
@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        # Computed when it is whole, and computed while it arrives.
        *(
            ("skip", fault)
            for fault in (cut_in_the_upload, cut_in_the_commit, cut_before_the_receipt, cut_in_the_reply)
        ),
        *(("reject", fault) for fault in (cut_in_the_upload, cut_in_the_update, cut_in_the_reply)),
    ],
)
def test_a_fault_leaves_no_trace_in_the_run(
    hosted: HostedServer,
    device: GatedDevice,
    proxy: Proxy,
    server: Server,
    direct: Server,
    steps: int,
    policy: str,
    fault: Fault,
) -> None:
    """Not in the block that it hits, and not in later ones: what the block has lost is in the next gradient."""
    params = {"w": gradient(SIZE, 0)}
    run = server.create_run(fresh_name("once"), params, AMSGrad(lr=0.01), non_finite=policy, **INT8)
    twin = direct.create_run(fresh_name("twin"), params, AMSGrad(lr=0.01), **INT8)
    blocks = [{"w": gradient(SIZE, seed, steps)} for seed in (1, 2, 3, 4)]
    for block in blocks[:2]:
        run.step_many(block)
    device.commits = 0
    proxy.was_cut.clear()
    with fault(hosted, device, proxy, steps):
        run.step_many(blocks[2])
    assert proxy.was_cut.is_set()
    assert device.commits == (policy == "skip")
    assert hosted.run_of(run.name).version == 3  # of the blocks, each counted once
    assert run.step_count == 3 * steps
    assert np.array_equal(run.params["w"], run.read()["w"])  # the first answer on a stream is full
    run.step_many(blocks[3])

    device.hold("committed").release()
    for block in blocks:
        twin.step_many(block)
    assert np.array_equal(run.read()["w"], twin.read()["w"])
    ours, theirs = run.state_dict()["tensors"]["w"], twin.state_dict()["tensors"]["w"]
    for slot in run.slots:
        assert np.array_equal(ours[slot], theirs[slot])
    np.testing.assert_allclose(run.params["w"], run.read()["w"], atol=0.1 / 254)


def test_the_connection_breaks_at_every_step(hosted: HostedServer, proxy: Proxy, server: Server) -> None:
    """Cuts at ever later bytes. The worker's copy never leaves the server's parameters behind."""
    size = 20_000
    run = server.create_run(fresh_name("often"), {"w": gradient(size, 0)}, AMSGrad(lr=0.01), **INT8)
    for number in range(20):
        direction = (Direction.UP, Direction.DOWN)[number % 2]
        proxy.cut_after(direction, 1 + number * size // 19)
        assert run.step({"w": gradient(size, number)}).step == number + 1
        np.testing.assert_allclose(run.params["w"], run.read()["w"], atol=0.1 / 254)
    assert proxy.connections > 10


# --- a worker written from the contract alone ------------------------------------------------------------------------

ELEMENTS = 700
LENGTHS = (256, 256, 188)
ROW_BYTES = ELEMENTS + 4 * len(LENGTHS)


def row(*scales: float, code: int = 1) -> bytes:
    """One row of the run: all codes alike."""
    return struct.pack("<3f", *scales) + struct.pack("b", code) * ELEMENTS


def decode(data: bytes) -> Floats:
    """One row of all three blocks, as ``run.proto`` says."""
    scales = np.repeat(np.frombuffer(data, "<f4", 3), LENGTHS)
    values: Floats = np.frombuffer(data, np.int8, offset=12).astype(np.float32) * scales
    return values


def part(sequence: int, data: bytes, offset: int = 0, last: bool = True, **header: Any) -> train_pb2.Gradients:
    message = train_pb2.Gradients(sequence=sequence, offset=offset, data=data, last=last)
    if header:
        message.header.CopyFrom(train_pb2.BlockHeader(**header))
    return message


def attach(stub: Stub, name: str, **encodings: Any) -> BareStream:
    int8 = {"gradient_encoding": run_pb2.ENCODING_INT8, "parameter_encoding": run_pb2.ENCODING_INT8}
    return BareStream(stub, name, **{**int8, **encodings})


def make(stub: Stub, **options: Any) -> str:
    name = fresh_name("int8")
    create(stub, spec_of(name, ELEMENTS, **options), gradient(ELEMENTS, 0))
    return name


def test_a_worker_written_from_the_contract_holds_what_the_server_counts_on(hosted_stub: Stub) -> None:
    name = make(hosted_stub)
    stream = attach(hosted_stub, name)
    stream.send_message(part(1, row(0.5, 0.25, 1.0), steps=1))
    ((full,), receipt) = stream.answer()
    assert full.encoding == run_pb2.ENCODING_FLOAT32
    held = np.frombuffer(full.data, np.float32).copy()
    assert (receipt.received_bytes, receipt.sent_bytes) == (ROW_BYTES, 4 * ELEMENTS)
    for sequence in range(2, 30):
        stream.send_message(part(sequence, row(0.5, 0.25, 1.0, code=-sequence), steps=1))
        ((difference,), receipt) = stream.answer()
        assert difference.encoding == run_pb2.ENCODING_INT8
        assert (receipt.received_bytes, receipt.sent_bytes) == (ROW_BYTES, ROW_BYTES)
        held += decode(difference.data)
    expected = np.frombuffer(fingerprint(hosted_stub, name)["parameters"], np.float32)
    # Errors of single differences do not add up: what is left is one rounding of the last.
    np.testing.assert_allclose(held, expected, atol=0.02 / 254)
    # A block sent again is answered in full, also on the stream on which it was answered before.
    stream.send_message(part(29, b""))
    ((again,), receipt) = stream.answer()
    assert (again.encoding, receipt.repeated) == (run_pb2.ENCODING_FLOAT32, True)
    assert np.array_equal(np.frombuffer(again.data, np.float32), expected)
    assert (receipt.received_bytes, receipt.sent_bytes) == (ROW_BYTES, 4 * ELEMENTS)
    stream.finish()


def test_a_deferred_block_may_replace_int8_slices(hosted_stub: Stub) -> None:
    name, twin = make(hosted_stub), make(hosted_stub)
    stream = attach(hosted_stub, name)
    wrong = struct.pack("<f", 9.0) + bytes(256)
    stream.send_message(part(1, wrong, 256, last=False, steps=1, deferred=True))
    stream.send_message(part(1, row(0.5, 0.25, 1.0), steps=1, deferred=True))
    stream.answer()
    other = attach(hosted_stub, twin)
    other.send_message(part(1, row(0.5, 0.25, 1.0), steps=1))
    other.answer()
    assert fingerprint(hosted_stub, name) == fingerprint(hosted_stub, twin)
    stream.finish()
    other.finish()


# --- hostile bytes ---------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
BLOCK = struct.pack("<f", 1.0) + bytes(256)

HOSTILE: dict[str, tuple[list[train_pb2.Gradients], type[GradwireError], str]] = {
    "one byte short": ([part(1, row(1, 1, 1)[:-1], steps=1)], InvalidSlice, "no whole number of INT8 blocks"),
    "one byte long": ([part(1, row(1, 1, 1) + b"x", steps=1)], InvalidSlice, "do not lie in the flat vector"),
    "a scale and no codes": ([part(1, bytes(4), steps=1)], InvalidSlice, "no whole number of INT8 blocks"),
    "half a block": ([part(1, bytes(4 + 128), last=False, steps=1)], InvalidSlice, "no whole number of INT8 blocks"),
    "begins inside a block": ([part(1, BLOCK, 100, last=False, steps=1)], InvalidSlice, "element 100 is no boundary"),
    "begins at the end": ([part(1, BLOCK, 700, steps=1)], InvalidSlice, "do not lie in the flat vector"),
    "begins beyond the end": ([part(1, BLOCK, 2**62, steps=1)], InvalidSlice, "no boundary"),
    "float32 instead": ([part(1, bytes(4 * ELEMENTS), steps=1)], InvalidSlice, "do not lie in the flat vector"),
    "an odd number of bytes for two rows": ([part(1, bytes(2 * ROW_BYTES - 1), steps=2)], InvalidSlice, "2 steps"),
    "twice the same": (
        [part(1, BLOCK, last=False, steps=1), part(1, BLOCK, last=False)],
        InvalidSlice,
        "overlap",
    ),
    "a NaN scale": ([part(1, row(1, NAN, 1), steps=1)], NonFiniteGradient, "is nan at its element 256"),
    "an infinite scale": ([part(1, row(1, 1, INF), steps=1)], NonFiniteGradient, "is nan at its element 512"),
    "an infinite scale of zeros": ([part(1, row(1, -INF, 1, code=0), steps=1)], NonFiniteGradient, "element 256"),
    "a product beyond float32": ([part(1, row(3e38, 1, 1, code=127), steps=1)], NonFiniteGradient, "is inf"),
    "a NaN in a later slice": (
        [part(1, 2 * BLOCK[:4] + bytes(512), last=False, steps=1), part(1, struct.pack("<f", NAN) + bytes(188), 512)],
        NonFiniteGradient,
        "element 512",
    ),
    "a trajectory": (
        [part(1, row(1, 1, 1), steps=1, returns=train_pb2.RETURNS_TRAJECTORY)],
        ProtocolViolation,
        "INT8 answers are differences",
    ),
    "more steps than a block of the run may have": (
        [part(1, bytes(260), last=False, steps=8 * 2**20 // 260 + 1)],
        ProtocolViolation,
        "expected 1 to 32263 at 260 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_are_refused_and_the_run_is_unharmed(hosted: HostedServer, hosted_stub: Stub, case: str) -> None:
    messages, expected, words = HOSTILE[case]
    name = make(hosted_stub)
    before = fingerprint(hosted_stub, name)
    used = hosted.used_bytes
    stream = attach(hosted_stub, name)
    for message in messages:
        stream.send_message(message)
    refusal = stream.refusal()
    assert type(refusal) is expected
    assert words in refusal.message
    assert refusal.applied is False
    assert fingerprint(hosted_stub, name) == before
    # The number is still free, and what the refused block held is not held any more.
    again = attach_when_free(hosted_stub, name, "worker")
    assert hosted.used_bytes == used
    again.finish()
    stream = attach(hosted_stub, name)
    stream.send_message(part(1, row(1, 1, 1), steps=1))
    ((full,), receipt) = stream.answer()
    assert (full.encoding, receipt.step) == (run_pb2.ENCODING_FLOAT32, 1)
    stream.finish()


def test_nan_scales_under_the_other_policies(hosted_stub: Stub) -> None:
    skipping = make(hosted_stub, policy=run_pb2.NON_FINITE_POLICY_SKIP)
    stream = attach(hosted_stub, skipping)
    stream.send_message(part(1, row(1, 1, 1) + row(1, NAN, 1) + row(1, 1, 1), steps=3))
    receipt = stream.answer()[1]
    assert (list(receipt.skipped_steps), receipt.step) == ([1], 2)
    stream.finish()
    allowing = make(hosted_stub, policy=run_pb2.NON_FINITE_POLICY_ALLOW)
    stream = attach(hosted_stub, allowing)
    for sequence, scale in enumerate((1.0, NAN, 1.0), 1):
        stream.send_message(part(sequence, row(1, scale, 1), steps=1))
        parts, _ = stream.answer()
    # The worker is told of the NaN: as values, for there is no difference that says it.
    assert {message.encoding for message in parts} == {run_pb2.ENCODING_FLOAT32}
    values = np.concatenate([np.frombuffer(message.data, np.float32) for message in parts])
    assert np.flatnonzero(np.isnan(values)).tolist() == list(range(256, 512))
    stream.finish()


def test_codes_of_minus_128_and_negative_scales_are_read_as_the_contract_says(hosted_stub: Stub) -> None:
    plain, name = make(hosted_stub), make(hosted_stub)
    stream = attach(hosted_stub, name)
    stream.send_message(part(1, row(-0.5, 0.25, 1.0, code=-128), steps=1))
    stream.answer()
    other = attach(hosted_stub, plain, gradient_encoding=run_pb2.ENCODING_FLOAT32)
    other.send_block(1, np.repeat(np.array([64, -32, -128], np.float32), LENGTHS), steps=1)
    other.answer()
    assert fingerprint(hosted_stub, name) == fingerprint(hosted_stub, plain)
    stream.finish()
    other.finish()


def test_an_encoding_that_the_server_does_not_know_is_refused_at_attach(hosted_stub: Stub) -> None:
    name = make(hosted_stub)
    for field in ("gradient_encoding", "parameter_encoding"):
        with pytest.raises(grpc.RpcError) as caught:
            attach(hosted_stub, name, **{field: 6})
        refusal = refusal_of(caught.value)
        assert isinstance(refusal, ProtocolViolation)
        assert "encoding 6 is not known" in refusal.message


def test_a_client_does_not_believe_a_difference_from_nothing(direct: Server) -> None:
    run: Run = direct.create_run(fresh_name("int8"), {"w": gradient(ELEMENTS, 0)}, AMSGrad(), **INT8)
    assert isinstance(run._encodings.parameters, DeltaParameters)
    message = train_pb2.Parameters(steps=1, data=row(1, 1, 1), encoding=run_pb2.ENCODING_INT8)
    with pytest.raises(ProtocolViolation, match="before it had sent their values"):
        run._encodings.parameters.take(message, message.data)
    run.close()
