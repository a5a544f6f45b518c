"""Gradients are computed where the client has written them, where that can harm nobody but its own run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, Run, connect
from gradwire.server.devices.chunks import NORM_CHUNK
from gradwire.server.devices.cpu import CpuDevice
from gradwire.v1 import run_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.layout import Range
from tests.faults.bare import Stub, channel_to, create, fingerprint, fresh_name, read_parameters, spec_of
from tests.faults.gated import GatedDevice
from tests.faults.hosted import HostedServer, eventually
from tests.shared_memory.test_hostile_clients import BYTES, GRADIENT, SIZE, HostileStream

REJECT, ALLOW, SKIP = (
    run_pb2.NON_FINITE_POLICY_REJECT,
    run_pb2.NON_FINITE_POLICY_ALLOW,
    run_pb2.NON_FINITE_POLICY_SKIP,
)
THIRD = SIZE // 3
LARGE = 5_000_000
"""Five slices."""


def run_of(stub: Stub, policy: run_pb2.NonFinitePolicy.ValueType = REJECT) -> str:
    name = fresh_name("lies")
    create(stub, spec_of(name, SIZE, policy), np.zeros(SIZE, np.float32))
    return name


@pytest.fixture(scope="module")
def one_step() -> tuple[np.ndarray[Any, Any], float]:
    """The parameters after one step with GRADIENT, which came through gRPC; and its norm."""
    with HostedServer() as server, connect(server.target, shared_memory=False) as connection:
        run = connection.create_run("plain", {"w": np.zeros(SIZE, np.float32)}, AMSGrad(lr=0.01))
        norm = run.step({"w": GRADIENT}).gradient_norm
        return run.params["w"].copy(), norm


@pytest.fixture(scope="module")
def expected(one_step: tuple[np.ndarray[Any, Any], float]) -> np.ndarray[Any, Any]:
    return one_step[0]


@pytest.mark.parametrize(
    ("policy", "clip_norm", "copied"),
    [("reject", None, False), ("allow", None, False), ("skip", None, True), ("reject", 1e9, True)],
)
def test_no_copy_is_made_where_none_is_needed(
    hosted: HostedServer, policy: str, clip_norm: float | None, copied: bool
) -> None:
    """A copy would be counted: it is kept for the next block. The numbers are the same."""
    params = {"x": np.zeros(LARGE, np.float32)}
    with connect(hosted.target) as near, connect(hosted.target, shared_memory=False) as far:
        runs: list[Run] = [
            one.create_run(fresh_name("copy"), params, AMSGrad(lr=0.01), non_finite=policy, clip_norm=clip_norm)
            for one in (near, far)
        ]
        used = hosted.used_bytes
        for seed in range(2):
            gradient = {"x": np.random.default_rng(seed).standard_normal(LARGE, np.float32)}
            runs[0].step(gradient)
            assert (hosted.used_bytes - used >= 4 * LARGE) is (copied or seed > 0)
            runs[1].step(gradient)
        assert runs[0].params["x"].tobytes() == runs[1].params["x"].tobytes()
        assert runs[0].last_receipt == runs[1].last_receipt
        for run in runs:
            run.close()


@contextmanager
def changed_once_checked(stream: HostileStream, device: GatedDevice) -> Iterator[None]:
    """Sends a gradient whose bytes become NaN while its commit is held, which it is until the end of the body."""
    stream.write(0, GRADIENT)
    stream.gradients(0, BYTES)
    with device.hold("commit") as gate:
        gate.wait_entered()
        stream.write(0, np.full(SIZE, np.nan, np.float32))
        yield
        gate.release()


@pytest.mark.parametrize("policy", [REJECT, ALLOW, SKIP])
def test_bytes_that_change_after_they_were_checked(
    hosted: HostedServer, device: GatedDevice, stub: Stub, expected: Any, policy: run_pb2.NonFinitePolicy.ValueType
) -> None:
    """NaN even: its own run gets what it wrote, as a whole step, and goes on; where a copy was made, what was checked.
    Nobody else notices."""
    with connect(hosted.target) as other:
        honest = other.create_run(fresh_name("other"), {"w": np.zeros(9, np.float32)}, AMSGrad(lr=0.01))
        name = run_of(stub, policy)
        stream = HostileStream(stub, name)
        with changed_once_checked(stream, device):
            honest.step({"w": np.ones(9, np.float32)})
        _, receipt = stream.answer()
        assert receipt.step == 1
        assert receipt.gradient_norm == pytest.approx(float(np.linalg.norm(GRADIENT.astype(np.float64))))
        found = read_parameters(stub, name)
        assert found.tobytes() == expected.tobytes() if policy == SKIP else np.isnan(found).all()
        assert fingerprint(stub, name) == fingerprint(stub, name)
        digests = [other.attach(name, takeover=True).digest() for _ in range(2)]
        assert digests[0] == digests[1]
        stream.end()
        assert honest.step({"w": np.ones(9, np.float32)}).step == 2
        assert np.isfinite(honest.params["w"]).all()


def test_the_journal_has_what_was_applied(tmp_path: Path, device: GatedDevice, expected: np.ndarray[Any, Any]) -> None:
    """What is applied again after a restart cannot be read from the client's memory: it was copied, and so it is what
    was checked."""
    name = fresh_name("journaled")
    with HostedServer(device, data_dir=str(tmp_path)) as hosted, channel_to(hosted.target) as channel:
        stub = service_pb2_grpc.OptimizerServiceStub(channel)
        spec = spec_of(name, SIZE)
        spec.durability = run_pb2.DURABILITY_JOURNAL
        create(stub, spec, np.zeros(SIZE, np.float32))
        stream = HostileStream(stub, name)
        with changed_once_checked(stream, device):
            pass
        assert stream.receipt().step == 1
        assert read_parameters(stub, name).tobytes() == expected.tobytes()
    with HostedServer(data_dir=str(tmp_path)) as hosted, channel_to(hosted.target) as channel:
        again = service_pb2_grpc.OptimizerServiceStub(channel)
        assert read_parameters(again, name).tobytes() == expected.tobytes()


@pytest.mark.parametrize("odd", ["inline", "elsewhere", "wanted back", "first elsewhere"])
def test_one_slice_that_lies_elsewhere(stub: Stub, expected: Any, odd: str) -> None:
    """What lay in its place until then is copied, before the client is told that it was taken."""
    name = run_of(stub)
    stream = HostileStream(stub, name)
    header = {"header": train_pb2.BlockHeader(steps=1)}
    for index in range(3):
        start = index * THIRD
        part, place = GRADIENT[start : start + THIRD], 4 * start
        here = index == (0 if odd == "first elsewhere" else 1)
        if here and odd != "wanted back":
            place = 4 * SIZE
        fields: dict[str, Any] = {"offset": start, "last": index == 2, **(header if index == 0 else {"header": None})}
        if here and odd == "inline":
            stream.put(gradients=train_pb2.Gradients(sequence=1, data=part.tobytes(), **fields))
            continue
        stream.write(place, part)
        stream.gradients(place, 4 * THIRD, shared={"acknowledge": here and odd == "wanted back"}, **fields)
        if here and odd == "wanted back":
            assert next(stream.call).taken.slices == 2
            stream.write(0, np.full(2 * THIRD, np.nan, np.float32))  # which it is free to use again
    _, receipt = stream.answer()
    assert receipt.step == 1
    assert read_parameters(stub, name).tobytes() == expected.tobytes()
    stream.end()


def third(stream: HostileStream, index: int, *, first: bool = False, last: bool = False) -> None:
    """Sends that third of GRADIENT."""
    stream.write(4 * index * THIRD, GRADIENT[index * THIRD : (index + 1) * THIRD])
    header = {} if first else {"header": None}
    stream.gradients(4 * index * THIRD, 4 * THIRD, offset=index * THIRD, last=last, **header)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_order_of_slices_changes_no_bit_of_the_norm(
    stub: Stub, one_step: tuple[np.ndarray[Any, Any], float], order: tuple[int, ...]
) -> None:
    """No slice ends where a part of the sum does."""
    name = run_of(stub)
    stream = HostileStream(stub, name)
    for at, index in enumerate(order):
        third(stream, index, first=at == 0, last=at == 2)
    _, receipt = stream.answer()
    assert receipt.gradient_norm == one_step[1]
    assert read_parameters(stub, name).tobytes() == one_step[0].tobytes()
    stream.end()


def test_squares_are_summed_while_others_arrive(
    device: GatedDevice, stub: Stub, one_step: tuple[np.ndarray[Any, Any], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what changes before the last slice has come may be in the step and not in its norm."""
    summed: list[Range] = []

    def chunk_sums(gradients: Any, first_row: int, ranges: Sequence[Range], start: int = 0) -> Any:
        found = CpuDevice.chunk_sums(device, gradients, first_row, ranges, start)
        summed.extend(ranges)
        return found

    monkeypatch.setattr(device, "chunk_sums", chunk_sums)
    name = run_of(stub)
    stream = HostileStream(stub, name)
    third(stream, 0, first=True)
    third(stream, 1)
    whole = 2 * THIRD // NORM_CHUNK * NORM_CHUNK
    eventually(lambda: bool(summed) and summed[-1].stop == whole, "sums of what is there")
    stream.write(0, np.full(whole, np.nan, np.float32))
    third(stream, 2, last=True)
    _, receipt = stream.answer()
    assert receipt.gradient_norm == one_step[1]
    found = read_parameters(stub, name)
    assert np.isnan(found[:whole]).all()
    assert found[whole:].tobytes() == one_step[0][whole:].tobytes()
    assert summed[-1] == Range(whole, SIZE)
    stream.end()
