"""What callers are told of a run: what never changes is encoded once, and nothing large stands on the event loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.engine.run import Run
from gradwire.server.engine.threads import is_short
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.rpc import run_message, service
from gradwire.server.rpc.codec import decode_spec
from gradwire.server.rpc.run_message import report
from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc
from gradwire.wire.layout import Layout
from gradwire.wire.layout_message import encode_tensors
from tests.faults.gated import Gate
from tests.faults.hosted import HostedServer, InBackground

MANY = 5_000


def spec_of(tensors: int, groups: int = 1) -> run_pb2.RunSpec:
    spec = run_pb2.RunSpec(name="runs/x", clip_norm=2.0)
    for group in range(groups):
        added = spec.groups.add(adam=run_pb2.Adam(lr=0.1 * (group + 1), amsgrad=group == 1))
        for index in range(tensors):
            added.tensors.add(name=f"{group}.{index}", shape=[2] * (index % 3))
    return spec


@pytest.fixture
def run() -> Iterator[Run]:
    with ThreadPoolExecutor(1) as executor:
        yield Run(decode_spec(spec_of(MANY, 2), "runs/x"), CpuDevice(1), MemoryBudget(2**30), executor)


def test_it_says_all_of_the_run(run: Run) -> None:
    sent = spec_of(MANY, 2)
    found = run_pb2.Run.FromString(report(run, "runs/called", "instance").serialize())
    assert [list(group.tensors) for group in found.spec.groups] == [list(group.tensors) for group in sent.groups]
    assert [(group.adam.lr, group.adam.amsgrad) for group in found.spec.groups] == [(0.1, False), (0.2, True)]
    assert (found.spec.name, found.spec.clip_norm, found.uid) == ("runs/called", 2.0, run.uid)
    assert (found.elements, list(found.slots)) == (run.spec.layout.elements, list(run.spec.slots))


def test_its_tensors_are_encoded_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Layout] = []

    def encode(layout: Layout) -> tuple[bytes, ...]:
        made.append(layout)
        return encode_tensors(layout)

    monkeypatch.setattr(run_message, "encode_tensors", encode)
    first = report(run, "runs/x", "")
    assert not is_short(first.work)
    first.serialize()
    run.step, run.groups = 7, (run.groups[0].replace({"lr": 0.5}), run.groups[1])
    later = report(run, "runs/x", "")
    assert is_short(later.work)
    found = run_pb2.Run.FromString(later.serialize())
    assert (found.step, found.spec.groups[0].adam.lr) == (7, 0.5)
    assert made == [run.spec.layout]


def test_a_layout_that_is_gone_is_not_kept(run: Run) -> None:
    report(run, "runs/x", "").serialize()
    before = len(run_message._tensors)
    del run.spec
    assert len(run_message._tensors) == before - 1


def test_groups_of_the_same_numbers_are_one_object() -> None:
    spec = run_pb2.RunSpec()
    for index, lr in enumerate((0.1, 0.2, 0.1)):
        spec.groups.add(adam=run_pb2.Adam(lr=lr)).tensors.add(name=str(index))
    first, second, third = decode_spec(spec, "runs/x").groups
    assert first is third
    assert first != second


def test_others_are_answered_while_a_large_spec_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    with HostedServer() as server, Gate() as gate, grpc.insecure_channel(server.target) as channel:

        def held_up(message: run_pb2.RunSpec, name: str) -> Any:
            assert threading.current_thread().name.startswith("gradwire-bulk")
            gate.pass_through()
            return decode_spec(message, name)

        monkeypatch.setattr(service, "decode_spec", held_up)
        stub = service_pb2_grpc.OptimizerServiceStub(channel)
        spec = spec_of(MANY)
        values = np.zeros(sum(int(np.prod(t.shape)) for t in spec.groups[0].tensors), np.float32)
        requests = [
            service_pb2.CreateRunRequest(header=service_pb2.CreateRunHeader(spec=spec, request_id="r")),
            service_pb2.CreateRunRequest(slice=run_pb2.Slice(data=values.tobytes())),
        ]
        creation = InBackground(lambda: stub.CreateRun(iter(requests), timeout=30))
        gate.wait_entered()
        assert stub.GetServerStatus(service_pb2.GetServerStatusRequest(), timeout=30).recovered
        gate.release()
        assert creation.result().created
