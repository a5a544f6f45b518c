"""CreateRun with a state: the run begins where another one stood, or is not made at all."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import Any

import pytest

from gradwire.v1 import run_pb2, service_pb2
from tests.contract.bare import BareClient, group, pack, refused
from tests.contract.deferred import whole_state
from tests.faults.hosted import HostedServer, eventually

SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
GRADIENT = [0.1, -0.2, 0.3, -0.4]
Message = service_pb2.CreateRunRequest


def groups() -> list[run_pb2.Group]:
    return [group(w=[3], b=[])]


def header(name: str, state: dict[str, Any] | None = None, *, replace: bool = False) -> Message:
    spec = run_pb2.RunSpec(name=f"runs/{name}", groups=groups())
    first = service_pb2.CreateRunHeader(spec=spec, request_id=f"request-{name}-{replace}", replace=replace)
    if state is not None:
        first.state.CopyFrom(service_pb2.StateHeader(**state))
    return Message(header=first)


def values(numbers: Sequence[float]) -> Message:
    return Message(slice=run_pb2.Slice(data=pack(numbers)))


def slot(index: int, numbers: Sequence[float], offset: int = 0) -> Message:
    return Message(slot_slice=service_pb2.SlotSlice(slot=index, offset=offset, data=pack(numbers)))


WHOLE = {"step": 5, "tensor_steps": [5, 4], "slots": SLOTS}
FILLED = [values([1.0] * 4), *(slot(index, [0.5] * 4) for index in range(3))]


def test_a_run_goes_on_where_another_stood(bare: BareClient) -> None:
    """Slots in another order, slices in any; the next step is the one that the other run would have made."""
    bare.create("source", groups(), [1.0, 2.0, 3.0, 4.0])
    with bare.attach("source") as stream:
        stream.step(1, GRADIENT)
        stream.step(2, GRADIENT[:3], absent_tensors=[1])
    read, *parts = bare.call("ReadState", service_pb2.ReadStateRequest(name="runs/source"))
    vectors = {read.header.slots[part.slice.slot]: part.slice.data for part in parts}
    order = ["max_exp_avg_sq", "exp_avg", "exp_avg_sq"]
    state = {"step": read.header.step, "tensor_steps": read.header.tensor_steps, "slots": order}
    slices = [
        Message(slot_slice=service_pb2.SlotSlice(slot=index, offset=offset, data=vectors[name][4 * offset :][:8]))
        for index, name in enumerate(order)
        for offset in (2, 0)
    ]
    response = bare.call("CreateRun", iter([header("copy", state), *slices, values(bare.read("source")[1])]))
    assert (response.created, response.run.step) == (True, 2)
    assert whole_state(bare, "copy") == whole_state(bare, "source")
    for name in ("source", "copy"):
        with bare.attach(name, "next") as stream:
            assert stream.step(1, GRADIENT)[1].step == 3
    assert whole_state(bare, "copy") == whole_state(bare, "source")


BAD: dict[str, tuple[str, list[Message]]] = {
    "other slots": ("PROTOCOL_VIOLATION", [header("bad", {**WHOLE, "slots": SLOTS[:2]}), *FILLED]),
    "too few tensors": ("PROTOCOL_VIOLATION", [header("bad", {**WHOLE, "tensor_steps": [5]}), *FILLED]),
    "a tensor ahead of the run": ("PROTOCOL_VIOLATION", [header("bad", {**WHOLE, "tensor_steps": [6, 0]}), *FILLED]),
    "a step beyond 2^53": ("PROTOCOL_VIOLATION", [header("bad", {**WHOLE, "step": 2**53}), *FILLED]),
    "slots without a state": ("PROTOCOL_VIOLATION", [header("bad"), *FILLED]),
    "an empty state": ("PROTOCOL_VIOLATION", [header("bad", {}), *FILLED]),
    "a slot is missing": ("INCOMPLETE_VALUES", [header("bad", WHOLE), *FILLED[:-1]]),
    "an element is missing": ("INCOMPLETE_VALUES", [header("bad", WHOLE), *FILLED[:-1], slot(2, [0.5] * 3)]),
    "the values are missing": ("INCOMPLETE_VALUES", [header("bad", WHOLE), *FILLED[1:]]),
    "an element comes twice": ("INVALID_SLICE", [header("bad", WHOLE), *FILLED, slot(1, [0.5], 3)]),
    "a slot too many": ("INVALID_SLICE", [header("bad", WHOLE), *FILLED, slot(3, [0.5] * 4)]),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("replace", [False, True])
def test_a_bad_state_makes_no_run_and_harms_none(case: str, replace: bool) -> None:
    reason, messages = BAD[case]
    first = Message()
    first.CopyFrom(messages[0])
    first.header.replace = replace
    with HostedServer() as hosted, BareClient(hosted.target) as bare:
        if replace:
            bare.create("bad", groups(), [7.0] * 4)
            with bare.attach("bad") as stream:
                stream.step(1, GRADIENT)
            before = whole_state(bare, "bad")
        used = hosted.used_bytes
        refused(reason, lambda: bare.call("CreateRun", iter([first, *messages[1:]])))
        eventually(lambda: hosted.used_bytes == used, "everything is given back")
        if replace:
            assert whole_state(bare, "bad") == before
        else:
            refused("RUN_NOT_FOUND", lambda: bare.get("bad"))


def test_the_old_run_stays_until_the_new_one_is_whole(bare: BareClient) -> None:
    bare.create("old", groups(), [7.0] * 4)
    old = bare.get("old").uid
    response = bare.call("CreateRun", iter([header("old", WHOLE, replace=True), *FILLED]))
    assert response.run.uid != old
    assert (bare.get("old").step, bare.read("old")[1]) == (5, [1.0] * 4)


def test_a_repeated_request_is_answered_with_the_run_as_it_is(bare: BareClient) -> None:
    """The second attempt's state is not looked at, as its values are not."""
    assert bare.call("CreateRun", iter([header("again", WHOLE), *FILLED])).created
    with bare.attach("again") as stream:
        stream.step(1, GRADIENT)
    state = whole_state(bare, "again")
    for second in (WHOLE, {"step": 9, "tensor_steps": [1], "slots": []}, None):
        response = bare.call("CreateRun", iter([header("again", second), values([2.0] * 4)]))
        assert (response.created, response.run.step) == (False, 6)
    assert whole_state(bare, "again") == state


def test_the_run_is_not_there_before_every_slot_is(bare: BareClient) -> None:
    requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    call = bare.stub.CreateRun.future(iter(requests.get, None), timeout=30)
    for message in (header("late", WHOLE), *FILLED[:-1]):
        requests.put(message)
    refused("RUN_NOT_FOUND", lambda: bare.get("late"))
    requests.put(FILLED[-1])
    requests.put(None)
    assert call.result().run.step == 5
    assert whole_state(bare, "late") == ([1.0] * 4, [pack([0.5] * 4)] * 3, [5, 4])
