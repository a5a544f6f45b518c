"""WriteParameters with ``partial``: what is sent is replaced, all else keeps its value to the last bit."""

from __future__ import annotations

import math
import queue

import pytest

from gradwire.v1 import run_pb2, service_pb2
from tests.contract.bare import BareClient, Refusal, group, pack, refused
from tests.faults.gated import BULK
from tests.faults.hosted import HostedServer, eventually

FULL = [0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7]


def part(offset: int, *values: float) -> run_pb2.Slice:
    return run_pb2.Slice(offset=offset, data=pack(values))


@pytest.mark.parametrize(
    "written",
    [
        {},
        {0: [9.0]},
        {6: [9.0]},
        {2: [9.0, 8.0, 7.0]},
        {0: [1.0, 2.0], 4: [3.0]},
        {1: [1.0], 3: [2.0], 5: [3.0]},
        {0: [1.0], 1: [2.0], 2: [3.0, 4.0, 5.0, 6.0, 7.0]},
    ],
    ids=str,
)
def test_only_what_is_sent_changes(bare: BareClient, name: str, written: dict[int, list[float]]) -> None:
    with bare.attach(name) as stream:
        stream.step(1, FULL)
    before, epoch = bare.read(name)[1], bare.get(name).epoch
    response = bare.write(name, [part(offset, *values) for offset, values in reversed(written.items())], partial=True)
    assert (response.step, response.epoch) == (1, epoch + 1)
    for offset, values in written.items():
        before[offset : offset + len(values)] = values
    assert bare.read(name)[1] == before
    assert bare.get(name).epoch == epoch + 1


def test_the_rest_has_the_values_of_the_end_of_the_call(bare: BareClient, name: str) -> None:
    """A step that is made while the slices arrive is not undone; the optimizer state is not touched."""
    requests: queue.SimpleQueue[service_pb2.WriteParametersRequest | None] = queue.SimpleQueue()
    header = service_pb2.WriteParametersHeader(name=f"runs/{name}", partial=True)
    requests.put(service_pb2.WriteParametersRequest(header=header))
    requests.put(service_pb2.WriteParametersRequest(slice=part(0, 5.0)))
    call = bare.stub.WriteParameters.future(iter(requests.get, None), timeout=30)
    with bare.attach(name) as stream:
        stream.step(1, FULL)
        values = bare.read(name)[1]
        requests.put(None)
        assert call.result().step == 1
        assert bare.read(name)[1] == [5.0, *values[1:]]
        refused("FENCED", lambda: stream.step(2, FULL))


@pytest.mark.parametrize(
    ("slices", "reason"),
    [
        ([part(0, 1.0, 2.0), part(1, 3.0)], "INVALID_SLICE"),
        ([part(6, 1.0, 2.0)], "INVALID_SLICE"),
        ([run_pb2.Slice(offset=0, data=b"abc")], "INVALID_SLICE"),
    ],
)
def test_bad_slices_change_nothing(bare: BareClient, name: str, slices: list[run_pb2.Slice], reason: str) -> None:
    before = bare.get(name), bare.read(name)[1]
    refused(reason, lambda: bare.write(name, slices, partial=True))
    assert (bare.get(name), bare.read(name)[1]) == before


def test_without_partial_all_must_come(bare: BareClient, name: str) -> None:
    refused("INCOMPLETE_VALUES", lambda: bare.write(name, [part(0, 1.0)]))


def test_a_long_vector_keeps_what_is_not_sent() -> None:
    """Longer than what is copied at once."""
    size = (1 << 20) + 5
    with HostedServer() as hosted, BareClient(hosted.target) as bare:
        bare.create("long", [group(w=[size])], [run_pb2.Slice(data=pack([1.0] * size))])
        bare.write("long", [part(3, 7.0), part(size - 2, 8.0)], partial=True)
        expected = [1.0] * size
        expected[3], expected[size - 2] = 7.0, 8.0
        assert bare.read("long")[1] == expected


def test_more_gaps_than_tensors_are_refused() -> None:
    with HostedServer() as hosted, BareClient(hosted.target) as bare:
        bare.create("gaps", [group(w=[20_000])], [1.0] * 20_000)
        with pytest.raises(Refusal, match="more than 4096 gaps"):
            bare.write("gaps", [part(2 * i, 7.0) for i in range(5000)], partial=True)
        tensors = {f"t{i}": [1] for i in range(12_000)}
        bare.create("many", [group(**tensors)], [1.0] * 12_000)
        bare.write("many", [part(2 * i, 7.0) for i in range(6000)], partial=True)
        assert bare.read("many")[1] == [7.0, 1.0] * 6000


def test_a_long_partial_write_fences_an_idle_stream_at_once() -> None:
    """The gaps are filled in a thread; what ends the stream must reach the event loop."""
    with HostedServer() as hosted, BareClient(hosted.target) as bare:
        bare.create("x", [group(w=[BULK])], [0.0] * BULK)
        for sequence in range(1, 4):
            stream = bare.attach("x")
            assert bare.write("x", [part(sequence, 1.0)], partial=True).epoch == 2 * sequence
            refused("FENCED", stream.receive)
        assert bare.read("x")[1][:5] == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_values_that_are_not_finite_are_written_as_in_a_whole_write(bare: BareClient, name: str) -> None:
    """The policy is about gradients."""
    bare.write(name, [part(1, math.inf), part(3, math.nan)], partial=True)
    values = bare.read(name)[1]
    assert values[1] == math.inf
    assert math.isnan(values[3])
    assert [values[i] for i in (0, 2, 4, 5, 6)] == [0.0] * 5


def test_one_more_vector_is_counted_while_slices_arrive_and_given_back() -> None:
    """Written, refused or broken off."""
    with HostedServer() as hosted, BareClient(hosted.target) as bare:
        bare.create("x", [group(w=[1000])], [0.0] * 1000)
        used = hosted.used_bytes
        bare.write("x", [part(0, 1.0)], partial=True)
        assert hosted.used_bytes == used
        refused("INVALID_SLICE", lambda: bare.write("x", [part(0, 1.0), part(0, 1.0)], partial=True))
        assert hosted.used_bytes == used
        requests: queue.SimpleQueue[service_pb2.WriteParametersRequest | None] = queue.SimpleQueue()
        header = service_pb2.WriteParametersHeader(name="runs/x", partial=True)
        requests.put(service_pb2.WriteParametersRequest(header=header))
        call = bare.stub.WriteParameters.future(iter(requests.get, None), timeout=30)
        eventually(lambda: hosted.used_bytes == used + 4000, "the new vector is staged")
        call.cancel()
        requests.put(None)
        eventually(lambda: hosted.used_bytes == used, "it is given back")
        assert bare.read("x")[1] == [1.0] + [0.0] * 999
