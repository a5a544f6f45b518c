"""A creation tried again, raced, or broken off: one run or none, and the old one stays until the new one is whole."""

from __future__ import annotations

import queue
from typing import Any

import grpc
import pytest

from gradwire.server.engine.spec import TENSOR_BYTES
from gradwire.v1 import run_pb2, service_pb2, train_pb2
from tests.contract.bare import BareClient, Refusal, group, pack, refused
from tests.faults.hosted import HostedServer, eventually

FULL = [1.0] * 7


def test_a_creation_tried_again_makes_no_duplicate(bare: BareClient, name: str) -> None:
    with bare.attach(name) as stream:
        stream.step(1, FULL)
    before, values = bare.get(name), bare.read(name)[1]
    for replace in (False, True):
        response = bare.create(name, [group(w=[7])], [5.0] * 7, request_id="request", replace=replace)
        assert (response.created, response.run) == (False, before)
    assert bare.read(name)[1] == values
    refused("RUN_ALREADY_EXISTS", lambda: bare.create(name, [group(w=[7])], [5.0] * 7, request_id="another"))


class OpenCreation:
    """A CreateRun whose header has been sent."""

    def __init__(self, bare: BareClient, name: str, request_id: str, replace: bool = False) -> None:
        self._requests: queue.SimpleQueue[service_pb2.CreateRunRequest | None] = queue.SimpleQueue()
        spec = run_pb2.RunSpec(name=f"runs/{name}", groups=[group(w=[2])])
        header = service_pb2.CreateRunHeader(spec=spec, request_id=request_id, replace=replace)
        self._requests.put(service_pb2.CreateRunRequest(header=header))
        self.call: Any = bare.stub.CreateRun.future(iter(self._requests.get, None), timeout=30)

    def finish(self, *values: float) -> service_pb2.CreateRunResponse:
        self._requests.put(service_pb2.CreateRunRequest(slice=run_pb2.Slice(data=pack(values))))
        self._requests.put(None)
        try:
            response: service_pb2.CreateRunResponse = self.call.result()
        except grpc.RpcError as error:
            raise Refusal(error) from None
        return response

    def cancel(self) -> None:
        self.call.cancel()
        self._requests.put(None)


@pytest.mark.parametrize("replace", [False, True])
def test_two_attempts_of_one_creation_at_once_make_one_run(replace: bool) -> None:
    """A retry may overtake the first attempt, whose connection is only half broken."""
    with HostedServer() as hosted, BareClient(hosted.target) as bare:
        first, second = (OpenCreation(bare, "x", "same", replace) for _ in range(2))
        eventually(lambda: hosted.used_bytes == 2 * (4 * 2 * 4 + TENSOR_BYTES), "both are open")
        assert second.finish(1.0, 2.0).created
        with bare.attach("x") as stream:
            stream.step(1, [0.0, 0.0])
            assert not first.finish(1.0, 2.0).created
            assert stream.step(2, [0.0, 0.0])[1].step == 2
        assert bare.read("x")[1] == [1.0, 2.0]
        assert bare.call("DeleteRun", service_pb2.DeleteRunRequest(name="runs/x")).step == 2
        eventually(lambda: hosted.used_bytes == 0, "everything is given back")


def test_of_two_creations_at_once_the_first_to_end_wins(bare: BareClient) -> None:
    first, second = (OpenCreation(bare, "requests-race", request_id) for request_id in ("one", "two"))
    assert second.finish(1.0, 2.0).created
    refused("RUN_ALREADY_EXISTS", lambda: first.finish(3.0, 4.0))
    assert bare.read("requests-race")[1] == [1.0, 2.0]


def test_a_run_is_not_there_before_its_values_are(bare: BareClient) -> None:
    creation = OpenCreation(bare, "requests-half", "r")
    with pytest.raises(Refusal, match="NOT_FOUND"):
        bare.get("requests-half")
    creation.finish(1.0, 2.0)
    assert bare.get("requests-half").elements == 2


def test_replace_keeps_the_old_run_until_the_new_one_is_whole() -> None:
    """Refused, cancelled, or broken off: the old run trains on, and no memory is lost."""
    with HostedServer() as hosted, BareClient(hosted.target) as bare:
        bare.create("x", [group(w=[2])], [1.0, 2.0])
        with bare.attach("x") as stream:
            stream.step(1, [0.0, 0.0])
            held = hosted.used_bytes
            refused("INCOMPLETE_VALUES", lambda: OpenCreation(bare, "x", "new", replace=True).finish(5.0))
            refused("INVALID_SLICE", lambda: OpenCreation(bare, "x", "new", replace=True).finish(5.0, 6.0, 7.0))
            abandoned = OpenCreation(bare, "x", "new", replace=True)
            eventually(lambda: hosted.used_bytes > held, "the new run is allocated")
            abandoned.cancel()
            eventually(lambda: hosted.used_bytes == held, "the new run is freed")
            assert stream.step(2, [0.0, 0.0]) == ({0: [1.0, 2.0]}, stream_receipt(2))
            assert OpenCreation(bare, "x", "new", replace=True).finish(5.0, 6.0).created
            with pytest.raises(Refusal) as caught:
                stream.receive()
            assert caught.value.reason == "RUN_NOT_FOUND"
        assert (bare.get("x").step, bare.read("x")[1]) == (0, [5.0, 6.0])


def stream_receipt(step: int) -> train_pb2.Receipt:
    return train_pb2.Receipt(
        step=step, learning_rates=[1e-3], durability=run_pb2.DURABILITY_MEMORY, received_bytes=8, sent_bytes=8
    )
