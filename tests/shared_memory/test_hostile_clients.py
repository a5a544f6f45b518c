"""A client written against the contract alone that does with its region what it should not. It hurts itself only."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from gradwire.client import AMSGrad, Server
from gradwire.server.memory.shared_memory import SharedMemory
from gradwire.v1 import run_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.errors import GradwireError, InvalidSlice, NonFiniteGradient, ProtocolViolation, Stalled
from gradwire.wire.shared import HEADER_BYTES, Region
from tests.faults.bare import BareStream, Stub, channel_to, create, fingerprint, fresh_name, refusal_of, spec_of
from tests.faults.hosted import HostedServer, eventually

SIZE = 300_000
BYTES = 4 * SIZE
GRADIENT = np.random.default_rng(1).standard_normal(SIZE, np.float32)


class HostileStream(BareStream):
    """A stream that has mapped its region, or pretends to."""

    def __init__(self, stub: Stub, name: str, *, confirm: bool = True, **attach: Any) -> None:
        super().__init__(stub, name, shared_memory=True, **attach)
        self.offer = self.attached.region
        self.file = open(f"/proc/{self.offer.pid}/fd/{self.offer.file_descriptor}", "r+b", buffering=0)  # noqa: SIM115
        self.region = Region(self.file.fileno(), os.fstat(self.file.fileno()).st_size)
        if confirm:
            self.put(mapped=train_pb2.Mapped(proof=self.region.proof))

    def put(self, **message: Any) -> None:
        self._requests.put(train_pb2.TrainRequest(**message))

    def write(self, position: int, values: np.ndarray[Any, Any]) -> None:
        self.region.part(self.offer.gradient_offset + position, values.nbytes)[:] = values.view(np.uint8)

    def gradients(self, position: int, size_bytes: int, **fields: Any) -> None:
        """A slice that lies in the region; the whole of a block if nothing else is said."""
        header = train_pb2.BlockHeader(steps=1)
        shared = train_pb2.SharedData(position=position, size_bytes=size_bytes, **fields.pop("shared", {}))
        self.put(
            gradients=train_pb2.Gradients(
                **{"sequence": 1, "offset": 0, "last": True, "header": header, "shared": shared, **fields}
            )
        )

    def error(self) -> GradwireError:
        """What the server ends the stream with."""
        with pytest.raises(grpc.RpcError) as caught:
            for _ in self.call:
                pass
        self.end()
        return refusal_of(caught.value)

    def receipt(self) -> train_pb2.Receipt:
        for response in self.call:
            if response.parameters.HasField("receipt"):
                receipt: train_pb2.Receipt = response.parameters.receipt
                self.end()
                return receipt
        raise AssertionError("no receipt")

    def outcome(self) -> GradwireError | None:
        """None: the block has been applied."""
        try:
            while not next(self.call).parameters.HasField("receipt"):
                pass
        except grpc.RpcError as error:
            return refusal_of(error)
        return None

    def end(self) -> None:
        self._requests.put(None)
        self.region.close()
        self.file.close()


@pytest.fixture
def stub(hosted: HostedServer) -> Iterator[Stub]:
    channel = channel_to(hosted.target)
    yield service_pb2_grpc.OptimizerServiceStub(channel)
    channel.close()


@pytest.fixture
def name(stub: Stub) -> str:
    """A run of SIZE elements."""
    name = fresh_name("hostile")
    create(stub, spec_of(name, SIZE), np.zeros(SIZE, np.float32))
    return name


def test_a_whole_exchange_by_hand(stub: Stub, name: str) -> None:
    """With nothing of the client's Python: what the contract says is enough."""
    stream = HostileStream(stub, name)
    stream.write(64, GRADIENT)
    stream.gradients(64, BYTES)
    reply = next(stream.call).parameters
    assert reply.receipt.step == 1
    assert not reply.data
    assert reply.shared.size_bytes == BYTES
    view = stream.region.part(stream.offer.parameter_offset + reply.shared.position, BYTES).view(np.float32)
    assert np.isclose(view, -0.01 * np.sign(GRADIENT), rtol=1e-2).all()
    assert (reply.receipt.received_bytes, reply.receipt.sent_bytes) == (BYTES, BYTES)
    stream.put(gradients=train_pb2.Gradients(sequence=1, last=True))
    again = next(stream.call).parameters
    assert again.receipt.repeated
    assert again.shared.size_bytes == BYTES
    stream.end()


Act = Callable[[HostileStream], None]


def outside(stream: HostileStream) -> None:
    stream.gradients(stream.offer.gradient_bytes - 8, BYTES)


def far_outside(stream: HostileStream) -> None:
    stream.gradients(2**63, 2**63 - 8)


def too_large(stream: HostileStream) -> None:
    stream.gradients(0, stream.offer.gradient_bytes // 4 + 8)


def crooked(stream: HostileStream) -> None:
    stream.gradients(4, BYTES)


def half_an_element(stream: HostileStream) -> None:
    stream.gradients(0, BYTES - 2)


def beyond_the_vector(stream: HostileStream) -> None:
    stream.gradients(0, BYTES, offset=8)


def overlapping(stream: HostileStream) -> None:
    stream.gradients(0, 4000, last=False)
    stream.gradients(0, 4000, offset=999, header=None)


@pytest.mark.parametrize(
    "act", [outside, far_outside, too_large, crooked, half_an_element, beyond_the_vector, overlapping]
)
def test_slices_that_are_none(hosted: HostedServer, stub: Stub, server: Server, name: str, act: Act) -> None:
    check_unharmed(hosted, stub, server, name, act, InvalidSlice)


def both(stream: HostileStream) -> None:
    stream.gradients(0, BYTES, data=bytes(BYTES))


def mapped_again(stream: HostileStream) -> None:
    stream.put(mapped=train_pb2.Mapped(proof=stream.region.proof))


def taken_what_was_not_sent(stream: HostileStream) -> None:
    stream.put(taken=train_pb2.Taken(slices=1))


def taken_in_a_slice(stream: HostileStream) -> None:
    stream.gradients(0, BYTES, shared={"taken": 7})


def an_empty_message(stream: HostileStream) -> None:
    stream.put()


@pytest.mark.parametrize("act", [both, mapped_again, taken_what_was_not_sent, taken_in_a_slice, an_empty_message])
def test_messages_that_make_no_sense(hosted: HostedServer, stub: Stub, server: Server, name: str, act: Act) -> None:
    check_unharmed(hosted, stub, server, name, act, ProtocolViolation)


def before_the_proof(stream: HostileStream) -> None:
    stream.gradients(0, BYTES)


def a_wrong_proof(stream: HostileStream) -> None:
    stream.put(mapped=train_pb2.Mapped(proof=bytes(32)))


def a_short_proof(stream: HostileStream) -> None:
    stream.put(mapped=train_pb2.Mapped(proof=stream.region.proof[:-1]))


def after_giving_it_back(stream: HostileStream) -> None:
    stream.put(mapped=train_pb2.Mapped())
    stream.gradients(0, BYTES)


@pytest.mark.parametrize("act", [before_the_proof, a_wrong_proof, a_short_proof, after_giving_it_back])
def test_regions_that_are_not_mapped(hosted: HostedServer, stub: Stub, server: Server, name: str, act: Act) -> None:
    check_unharmed(hosted, stub, server, name, act, ProtocolViolation, confirm=False)


@pytest.mark.parametrize("kind", ["shared", "mapped", "taken"])
def test_streams_that_have_no_region(stub: Stub, name: str, kind: str) -> None:
    before = fingerprint(stub, name)
    stream = BareStream(stub, name)
    assert not stream.attached.HasField("region")
    messages = {
        "shared": train_pb2.TrainRequest(
            gradients=train_pb2.Gradients(sequence=1, last=True, shared=train_pb2.SharedData(size_bytes=8))
        ),
        "mapped": train_pb2.TrainRequest(mapped=train_pb2.Mapped()),
        "taken": train_pb2.TrainRequest(taken=train_pb2.Taken()),
    }
    stream._requests.put(messages[kind])
    with pytest.raises(grpc.RpcError) as caught:
        next(stream.call)
    assert isinstance(refusal_of(caught.value), ProtocolViolation)
    assert fingerprint(stub, name) == before


def check_unharmed(
    hosted: HostedServer,
    stub: Stub,
    server: Server,
    name: str,
    act: Act,
    error: type[GradwireError],
    *,
    confirm: bool = True,
) -> None:
    before = fingerprint(stub, name)
    used = hosted.used_bytes
    stream = HostileStream(stub, name, confirm=confirm)
    stream.write(0, GRADIENT)
    act(stream)
    refusal = stream.error()
    assert type(refusal) is error
    assert refusal.applied is False
    assert fingerprint(stub, name) == before
    eventually(lambda: hosted.used_bytes == used, "the region is free")
    with server.attach(name) as run:
        assert run.shares_memory
        assert run.step({"w": GRADIENT}).step == 1


# --- contents that do not stay still --------------------------------------------------------------------------------


class Scribbler:
    """Writes over the gradient part as fast as it can, with NaN and numbers in turn."""

    def __init__(self, stream: HostileStream) -> None:
        self._view = stream.region.part(stream.offer.gradient_offset, BYTES).view(np.float32)
        self._over = False
        self._thread = threading.Thread(target=self._scribble, daemon=True)
        self._thread.start()

    def _scribble(self) -> None:
        while not self._over:
            self._view[:] = np.nan
            self._view[:] = 1.0

    def close(self) -> None:
        self._over = True
        self._thread.join(10)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("encoding", [run_pb2.ENCODING_FLOAT32, run_pb2.ENCODING_BFLOAT16, run_pb2.ENCODING_INT8])
def test_what_is_checked_is_what_is_applied(
    hosted: HostedServer, stub: Stub, pieces: int, encoding: run_pb2.Encoding.ValueType
) -> None:
    """Gradients change while the server reads them: a step is refused, or it applies finite numbers; no NaN slips in
    between the check and the use. But for a block that is computed where it lies: its run gets what was written."""
    lies = pieces == 1 and encoding == run_pb2.ENCODING_FLOAT32
    outcomes = set()
    for _ in range(30):
        name = fresh_name("scribbled")
        create(stub, spec_of(name, SIZE), np.zeros(SIZE, np.float32))
        stream = HostileStream(stub, name, gradient_encoding=encoding)
        scribbler = Scribbler(stream)
        itemsize = {run_pb2.ENCODING_FLOAT32: 4, run_pb2.ENCODING_BFLOAT16: 2}.get(encoding, 1)
        length = SIZE // pieces // 256 * 256
        for piece in range(pieces):
            start, stop = piece * length, (piece + 1) * length if piece < pieces - 1 else SIZE
            size_bytes = (stop - start) * itemsize
            if encoding == run_pb2.ENCODING_INT8:
                size_bytes += 4 * -(-(stop - start) // 256)
            header = train_pb2.BlockHeader(steps=1) if piece == 0 else None
            stream.gradients(0, size_bytes, offset=start, last=piece == pieces - 1, header=header)
        outcome = stream.outcome()
        scribbler.close()
        stream.end()
        assert outcome is None or isinstance(outcome, NonFiniteGradient)
        outcomes.add(type(outcome))
        values = np.frombuffer(fingerprint(stub, name)["parameters"], np.float32)
        assert lies or np.isfinite(values).all()


def test_a_region_that_the_client_punches_holes_into(stub: Stub, name: str) -> None:
    """What is gone reads as zeros: the file cannot be cut short, so nothing faults."""
    stream = HostileStream(stub, name)
    stream.write(0, GRADIENT)
    punch_hole = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    fallocate = ctypes.CDLL(None).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    assert fallocate(stream.file.fileno(), punch_hole, HEADER_BYTES, stream.offer.gradient_bytes) == 0
    stream.gradients(0, BYTES)
    receipt = stream.receipt()
    assert receipt.step == 1
    assert receipt.gradient_norm == 0.0


def test_a_client_that_unmaps_its_region(stub: Stub, server: Server, name: str) -> None:
    stream = HostileStream(stub, name)
    stream.write(0, GRADIENT)
    stream.region.close()
    gc.collect()
    stream.gradients(0, BYTES)
    assert stream.receipt().step == 1
    eventually(lambda: not server.list_runs()[0].attached_worker_id, "the run is given back")
    with server.attach(name) as run:
        assert run.step({"w": GRADIENT}).step == 2


def test_a_client_that_never_takes_its_answer(hosted: HostedServer, stub: Stub, server: Server) -> None:
    """Where the answer has no room at once, the server waits for as long as for any peer that does not read."""
    name = fresh_name("sleeper")
    size = 40_000_000  # 160 MB: more than the region has room for
    run = server.create_run(name, {"w": np.zeros(size, np.float32)}, AMSGrad())
    run.close()
    used = hosted.used_bytes
    stream = HostileStream(stub, name)
    view = stream.region.part(stream.offer.gradient_offset, 4 * size // 16)
    view[:] = 0
    for index in range(16):
        header = train_pb2.BlockHeader(steps=1) if index == 0 else None
        start, stop = index * size // 16, (index + 1) * size // 16
        stream.gradients(0, 4 * (stop - start), offset=start, last=index == 15, header=header)
    begun = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        for _ in stream.call:
            pass  # it reads, but it never says that it has taken anything
    assert isinstance(refusal_of(caught.value), Stalled)
    assert time.monotonic() - begun < 20
    del view
    stream.end()
    eventually(lambda: hosted.used_bytes == used, "all is free")
    with server.attach(name) as later:
        assert later.step_count == 1


def test_streams_that_offer_and_never_answer(hosted: HostedServer, stub: Stub, name: str) -> None:
    """They go on as streams do; what they hold is counted, and ends with them."""
    used = hosted.used_bytes
    for _ in range(20):
        stream = BareStream(stub, name, shared_memory=True)
        assert stream.attached.HasField("region")
        gradients = train_pb2.Gradients(
            sequence=stream.attached.last_sequence + 1,
            last=True,
            header=train_pb2.BlockHeader(steps=1),
            data=GRADIENT.tobytes(),
        )
        stream._requests.put(train_pb2.TrainRequest(gradients=gradients))
        parts, _ = stream.answer()
        assert sum(len(part.data) for part in parts) == BYTES
        stream.finish()
    eventually(lambda: hosted.used_bytes == used, "all is free")


def test_an_offer_that_is_not_answered_is_withdrawn(
    hosted: HostedServer, stub: Stub, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradwire.server.rpc.stream_region.OFFER_SECONDS", 0.05)
    before = hosted.used_bytes
    stream = HostileStream(stub, name, confirm=False)
    assert stream.attached.HasField("region")
    eventually(lambda: hosted.used_bytes == before, "the memory is freed")
    assert stream.step(1, GRADIENT).step == 1  # in messages
    stream.put(mapped=train_pb2.Mapped(proof=stream.region.proof))
    error = stream.error()
    assert isinstance(error, Stalled)
    assert error.applied is False
    assert hosted.handlers() == 0


def test_an_offer_that_is_answered_stays(
    hosted: HostedServer, stub: Stub, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradwire.server.rpc.stream_region.OFFER_SECONDS", 0.2)
    withdrawn = threading.Event()
    withdraw = SharedMemory.withdraw

    def noted(memory: SharedMemory) -> None:
        withdraw(memory)
        withdrawn.set()

    monkeypatch.setattr(SharedMemory, "withdraw", noted)
    stream = HostileStream(stub, name)
    assert withdrawn.wait(30)
    stream.write(0, GRADIENT)
    stream.gradients(0, BYTES)
    assert stream.receipt().step == 1
