"""Requests that the contract does not allow are refused by name, cost nothing, and leave everything as it was."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from gradwire.client import AMSGrad, Server, connect
from gradwire.v1 import run_pb2, service_pb2, train_pb2
from gradwire.wire.errors import InvalidHyperparameter
from tests.contract.bare import BareClient, BareStream, Refusal, amsgrad, group, pack, slices, whole
from tests.faults.hosted import HostedServer, eventually
from tests.serving import ServerProcess

NAN, INF = math.nan, math.inf
UNKNOWN: Any = 99  # an enum's number that no version has given a name


@pytest.fixture
def bare(server_process: ServerProcess) -> Iterator[BareClient]:
    with BareClient(server_process.target) as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest, bare: BareClient) -> Iterator[str]:
    """A run of three tensors in two groups: a [2], b [2, 2], c [] at 0..2, 2..6, 6..7; all zero."""
    chosen = f"requests-{abs(hash(request.node.nodeid))}"
    bare.create(chosen, [group(a=[2], b=[2, 2]), group(amsgrad(low=-1, high=1), c=[])], [0.0] * 7)
    yield chosen
    bare.call("DeleteRun", service_pb2.DeleteRunRequest(name=f"runs/{chosen}"))


def refused(reason: str, call: Callable[[], object]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call()
    assert caught.value.reason == reason, caught.value
    assert caught.value.applied == "false"
    return caught.value


def spec_of(*groups: run_pb2.Group, **fields: Any) -> run_pb2.RunSpec:
    return run_pb2.RunSpec(**{"name": "runs/bad", "groups": groups, **fields})


def create(bare: BareClient, spec: run_pb2.RunSpec, **header: Any) -> service_pb2.CreateRunResponse:
    """CreateRun with a spec as it is and no values."""
    whole_header = service_pb2.CreateRunHeader(**{"spec": spec, "request_id": "r", **header})
    response: service_pb2.CreateRunResponse = bare.call(
        "CreateRun", iter([service_pb2.CreateRunRequest(header=whole_header)])
    )
    return response


# --- specs ------------------------------------------------------------------------------------------------------------

W = group(w=[2])
BAD_SPECS: dict[str, tuple[str, run_pb2.RunSpec]] = {
    "run name": ("INVALID_SPEC", spec_of(W, name="runs/a/b")),
    "no resource name": ("INVALID_SPEC", spec_of(W, name="bad")),
    "no group": ("INVALID_SPEC", spec_of()),
    "empty group": ("INVALID_SPEC", spec_of(W, group())),
    "no optimizer": ("INVALID_SPEC", spec_of(run_pb2.Group(tensors=W.tensors))),
    "duplicate name in a group": (
        "INVALID_SPEC",
        spec_of(run_pb2.Group(tensors=[*W.tensors, *W.tensors], adam=W.adam)),
    ),
    "duplicate name in another group": ("INVALID_SPEC", spec_of(W, W)),
    "empty tensor name": ("INVALID_SPEC", spec_of(group(None, **{"": [2]}))),
    "513 bytes of tensor name": ("INVALID_SPEC", spec_of(group(None, **{"é" * 256 + "x": [2]}))),
    "65 dimensions": ("INVALID_SPEC", spec_of(group(w=[1] * 65))),
    "2^31 elements": ("TOO_MANY_PARAMETERS", spec_of(group(w=[2**31]))),
    "2^31 elements together": ("TOO_MANY_PARAMETERS", spec_of(group(w=[2**30]), group(v=[2**30]))),
    "2^64 elements": ("TOO_MANY_PARAMETERS", spec_of(group(w=[2**32, 2**32]))),
    "2^64 + 1 elements": ("TOO_MANY_PARAMETERS", spec_of(group(w=[2**63, 2], v=[]))),
    "2^4096 elements": ("TOO_MANY_PARAMETERS", spec_of(group(w=[2**64 - 1] * 64))),
    "unknown dtype": ("INVALID_SPEC", spec_of(W, dtype=UNKNOWN)),
    "unknown policy": ("INVALID_SPEC", spec_of(W, non_finite_policy=UNKNOWN)),
    "unknown schedule": ("INVALID_SPEC", spec_of(group(amsgrad(schedule=UNKNOWN), w=[2]))),
    "unknown decay": ("INVALID_SPEC", spec_of(group(amsgrad(weight_decay_mode=UNKNOWN), w=[2]))),
    "unknown epsilon": ("INVALID_SPEC", spec_of(group(amsgrad(epsilon_placement=UNKNOWN), w=[2]))),
    "unknown maximum": ("INVALID_SPEC", spec_of(group(amsgrad(maximum_of=UNKNOWN), w=[2]))),
    "maximum without amsgrad": (
        "INVALID_HYPERPARAMETER",
        spec_of(group(run_pb2.Adam(maximum_of=run_pb2.Adam.MAXIMUM_OF_BIAS_CORRECTED), w=[2])),
    ),
    **{
        f"{field}={value}": ("INVALID_HYPERPARAMETER", spec_of(W, group(amsgrad(**{field: value}), v=[1])))
        for field in ("lr", "beta1", "beta2", "eps", "weight_decay")
        for value in (NAN, INF, -INF, -1e-3)
    },
    **{
        f"bounds=({low}, {high})": ("INVALID_HYPERPARAMETER", spec_of(group(amsgrad(low=low, high=high), w=[2])))
        for low, high in ((NAN, 1), (-1, NAN), (1, -1))
    },
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_bad_spec_is_refused_and_makes_no_run(bare: BareClient, case: str) -> None:
    reason, spec = BAD_SPECS[case]
    refused(reason, lambda: create(bare, spec))
    with pytest.raises(Refusal, match="NOT_FOUND"):
        bare.get("bad")


@pytest.mark.parametrize("request_id", ["", "r" * 129, "é" * 65], ids=["empty", "129 bytes", "130 bytes"])
def test_bad_request_id_is_refused(bare: BareClient, request_id: str) -> None:
    refused("PROTOCOL_VIOLATION", lambda: create(bare, spec_of(W), request_id=request_id))


def test_unknown_encodings_are_refused(bare: BareClient, name: str) -> None:
    refused("PROTOCOL_VIOLATION", lambda: create(bare, spec_of(W), encoding=UNKNOWN))
    refused("PROTOCOL_VIOLATION", lambda: bare.attach(name, gradient_encoding=UNKNOWN))
    refused("PROTOCOL_VIOLATION", lambda: bare.attach(name, parameter_encoding=UNKNOWN))
    read = service_pb2.ReadParametersRequest(name=f"runs/{name}", encoding=UNKNOWN)
    refused("PROTOCOL_VIOLATION", lambda: bare.call("ReadParameters", read))
    assert bare.get(name).attached_worker_id == ""


def test_2_31_elements_are_refused_before_allocation(bare: BareClient, server_process: ServerProcess) -> None:
    """Also as many tensors, and when the client goes on to send: the server's memory does not grow."""
    before = server_process.rss_bytes()
    started = time.monotonic()
    for groups in (
        [group(w=[2**31])],
        [group(w=[2**16, 2**15])],
        [group(None, **{f"t{i}": [2**21] for i in range(1024)})],
    ):
        refused("TOO_MANY_PARAMETERS", lambda groups=groups: create(bare, spec_of(*groups)))  # type: ignore[misc]
    assert server_process.rss_bytes() - before < 20 * 2**20
    assert time.monotonic() - started < 5


# --- uploads ----------------------------------------------------------------------------------------------------------


def part(offset: int, *values: float) -> run_pb2.Slice:
    return run_pb2.Slice(offset=offset, data=pack(values))


BAD_UPLOADS: dict[str, tuple[str, list[run_pb2.Slice]]] = {
    # for a vector of 7 elements
    "nothing": ("INCOMPLETE_VALUES", []),
    "a gap": ("INCOMPLETE_VALUES", [part(0, *[1.0] * 3), part(4, *[1.0] * 3)]),
    "one too few": ("INCOMPLETE_VALUES", [part(0, *[1.0] * 6)]),
    "one too many": ("INVALID_SLICE", [part(0, *[1.0] * 8)]),
    "past the end": ("INVALID_SLICE", [part(0, *[1.0] * 7), part(7, 1.0)]),
    "far past the end": ("INVALID_SLICE", [part(2**64 - 1, 1.0)]),
    "overlap": ("INVALID_SLICE", [part(0, *[1.0] * 4), part(3, *[1.0] * 4)]),
    "half an element": ("INVALID_SLICE", [run_pb2.Slice(data=b"\0" * 27)]),
}


@pytest.mark.parametrize("case", BAD_UPLOADS)
def test_bad_upload_is_refused_and_leaves_the_values(bare: BareClient, name: str, case: str) -> None:
    """As initial values of a replacement, as parameters, as state."""
    reason, parts = BAD_UPLOADS[case]
    before = bare.get(name)
    refused(reason, lambda: bare.create(name, [group(w=[7])], parts, request_id="new", replace=True))
    header = service_pb2.WriteParametersHeader(name=f"runs/{name}")
    requests = [service_pb2.WriteParametersRequest(header=header)]
    requests += [service_pb2.WriteParametersRequest(slice=one) for one in parts]
    refused(reason, lambda: bare.call("WriteParameters", iter(requests)))
    refused(reason, lambda: write_state(bare, name, parts))
    assert bare.get(name) == before
    assert bare.read(name)[1] == [0.0] * 7


SLOTS = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]


def write_state(bare: BareClient, name: str, parts: Sequence[run_pb2.Slice], slot: int = 0, **state: Any) -> None:
    """WriteState; ``parts`` go into one slot, the others are whole."""
    header = service_pb2.StateHeader(**{"step": 3, "tensor_steps": [3, 3, 3], "slots": SLOTS, **state})
    requests = [service_pb2.WriteStateRequest(header=service_pb2.WriteStateHeader(name=f"runs/{name}", state=header))]
    for other in {0, 1, 2} - {slot}:
        requests.append(service_pb2.WriteStateRequest(slice=service_pb2.SlotSlice(slot=other, data=pack([1.0] * 7))))
    for one in parts:
        slot_slice = service_pb2.SlotSlice(slot=slot, offset=one.offset, data=one.data)
        requests.append(service_pb2.WriteStateRequest(slice=slot_slice))
    bare.call("WriteState", iter(requests))


@pytest.mark.parametrize(
    "state",
    [
        {"slots": SLOTS[:2]},
        {"slots": [*SLOTS, "momentum"]},
        {"slots": ["exp_avg", "exp_avg", "exp_avg_sq"]},
        {"tensor_steps": [3, 3]},
        {"tensor_steps": [3, 3, 3, 3]},
        {"step": 2**53},
        {"tensor_steps": [3, 2**64 - 1, 3]},
    ],
    ids=str,
)
def test_state_that_does_not_fit_the_run_is_refused(bare: BareClient, name: str, state: dict[str, Any]) -> None:
    refused("PROTOCOL_VIOLATION", lambda: write_state(bare, name, slices([1.0] * 7), **state))
    assert bare.get(name).step == 0


def test_slice_of_a_slot_that_is_not_there_is_refused(bare: BareClient, name: str) -> None:
    refused("INVALID_SLICE", lambda: write_state(bare, name, slices([1.0] * 7), slot=3))
    refused("INVALID_SLICE", lambda: write_state(bare, name, slices([1.0] * 7), slot=2**32 - 1))


@pytest.mark.parametrize("method", ["CreateRun", "WriteParameters", "WriteState"])
def test_uploads_are_a_header_and_then_slices(bare: BareClient, name: str, method: str) -> None:
    request: Any = getattr(service_pb2, f"{method}Request")
    header: Any = getattr(service_pb2, f"{method}Header")()
    if method == "CreateRun":
        header.CopyFrom(service_pb2.CreateRunHeader(spec=spec_of(W), request_id="r"))
    else:
        header.name = f"runs/{name}"
    if method == "WriteState":
        header.state.CopyFrom(service_pb2.StateHeader(tensor_steps=[0, 0, 0], slots=SLOTS))
    for messages in (
        [],
        [request()],
        [request(slice={})],
        [request(header=header)] * 2,
        [request(header=header), request()],
    ):
        refused("PROTOCOL_VIOLATION", lambda messages=messages: bare.call(method, iter(messages)))  # type: ignore[misc]


# --- blocks -----------------------------------------------------------------------------------------------------------


def piece(offset: int, *values: float, last: bool = False, sequence: int = 1, **header: Any) -> train_pb2.Gradients:
    message = train_pb2.Gradients(sequence=sequence, offset=offset, data=pack(values), last=last)
    if header:
        message.header.CopyFrom(train_pb2.BlockHeader(**header))
    return message


FULL = [1.0] * 7
BAD_BLOCKS: dict[str, tuple[str, list[train_pb2.Gradients | train_pb2.TrainRequest]]] = {
    # an empty header is written steps=1, so that it is there
    "no header": ("PROTOCOL_VIOLATION", [piece(0, *FULL, last=True)]),
    "header twice": ("PROTOCOL_VIOLATION", [piece(0, 1.0, steps=1), piece(1, *FULL[1:], last=True, steps=1)]),
    "two blocks at once": ("PROTOCOL_VIOLATION", [piece(0, 1.0, steps=1), piece(1, *FULL[1:], sequence=2)]),
    "sequence 0": ("SEQUENCE_MISMATCH", [whole(0, FULL)]),
    "sequence 2": ("SEQUENCE_MISMATCH", [whole(2, FULL)]),
    "attach twice": ("PROTOCOL_VIOLATION", [train_pb2.TrainRequest(attach=train_pb2.Attach(run="runs/x"))]),
    "empty message": ("PROTOCOL_VIOLATION", [train_pb2.TrainRequest()]),
    "too many steps": ("PROTOCOL_VIOLATION", [whole(1, FULL, steps=2**21 + 1)]),
    "2^32 - 1 steps": ("PROTOCOL_VIOLATION", [whole(1, FULL, steps=2**32 - 1)]),
    "unknown returns": ("PROTOCOL_VIOLATION", [whole(1, FULL, returns=UNKNOWN)]),
    "absent tensor that is not there": ("PROTOCOL_VIOLATION", [whole(1, FULL, absent_tensors=[3])]),
    "absent tensor 2^32 - 1": ("PROTOCOL_VIOLATION", [whole(1, FULL, absent_tensors=[2**32 - 1])]),
    "override of a missing group": (
        "PROTOCOL_VIOLATION",
        [whole(1, FULL, overrides=[run_pb2.Override(group=2, lr=1)])],
    ),
    "two overrides of a group": (
        "PROTOCOL_VIOLATION",
        [whole(1, FULL, overrides=[run_pb2.Override(lr=1), run_pb2.Override(lr=2)])],
    ),
    "past the end": ("INVALID_SLICE", [whole(1, [*FULL, 1.0])]),
    "far past the end": ("INVALID_SLICE", [whole(1, FULL, 2**64 - 1)]),
    "overlap": ("INVALID_SLICE", [piece(0, *FULL[:4], steps=1), piece(3, *FULL[3:], last=True)]),
    "the same slice twice": ("INVALID_SLICE", [piece(0, 1.0, steps=1), piece(0, 1.0)]),
    "absent element": ("INVALID_SLICE", [piece(0, *FULL[:2], absent_tensors=[1]), piece(5, 1.0, 1.0, last=True)]),
    "half an element": (
        "INVALID_SLICE",
        [train_pb2.Gradients(sequence=1, data=b"\0" * 27, last=True, header=train_pb2.BlockHeader())],
    ),
    "half a row": ("INVALID_SLICE", [whole(1, FULL, steps=2)]),
    "too few": ("INCOMPLETE_VALUES", [whole(1, FULL[:6])]),
    "too few rows of a tensor": ("INCOMPLETE_VALUES", [whole(1, FULL[:6], steps=2)]),
    "nothing": ("INCOMPLETE_VALUES", [whole(1, [])]),
    "not all that is present": ("INCOMPLETE_VALUES", [piece(0, *FULL[:2], last=True, absent_tensors=[1])]),
    **{
        f"override {field}={value}": (
            "INVALID_HYPERPARAMETER",
            [whole(1, FULL, overrides=[run_pb2.Override(group=1, **{field: value})])],
        )
        for field, value in (
            *((field, value) for field in ("lr", "beta1", "beta2", "eps", "weight_decay") for value in (NAN, INF, -1)),
            ("low", 2),
            ("high", -2),
            ("low", NAN),
            ("high", NAN),
        )
    },
}


@pytest.mark.parametrize("case", BAD_BLOCKS)
def test_bad_block_is_refused_and_leaves_the_run(bare: BareClient, name: str, case: str) -> None:
    """All or nothing: parameters, hyperparameters, step and sequence are as before, and the right block still goes."""
    reason, messages = BAD_BLOCKS[case]
    before = bare.get(name)
    with bare.attach(name) as stream:
        stream.send(*messages)
        refused(reason, lambda: list(stream.answer()))
    after = bare.get(name)
    assert (after.spec, after.step, after.attached_worker_id) == (before.spec, 0, "")
    assert bare.read(name)[1] == [0.0] * 7
    with bare.attach(name) as stream:
        assert stream.attached.last_sequence == 0
        assert stream.step(1, FULL)[1].step == 1


@pytest.mark.parametrize("worker_id", ["", "w" * 129, "é" * 65], ids=["empty", "129 bytes", "130 bytes"])
def test_bad_worker_id_is_refused(bare: BareClient, name: str, worker_id: str) -> None:
    refused("PROTOCOL_VIOLATION", lambda: bare.attach(name, worker_id))


def test_the_first_message_of_train_is_an_attach(bare: BareClient) -> None:
    for first in (None, train_pb2.TrainRequest(), train_pb2.TrainRequest(gradients=whole(1, FULL))):
        stream = BareStream(bare.stub, None)
        stream.send(*([] if first is None else [first]))
        if first is None:
            stream._requests.put(None)
        refused("PROTOCOL_VIOLATION", stream.receive)


def test_a_step_count_of_0_is_one_step_and_absent_twice_is_absent(bare: BareClient, name: str) -> None:
    with bare.attach(name) as stream:
        assert stream.step(1, FULL, steps=0)[1].step == 1
        stream.send(piece(0, 1.0, 1.0, sequence=2, absent_tensors=[1, 1]), piece(6, 1.0, sequence=2, last=True))
        assert [one.offset for one in stream.answer()] == [0, 6]


def test_an_override_takes_effect_only_with_its_block(bare: BareClient, name: str) -> None:
    override = run_pb2.Override(group=0, lr=0.5)
    with bare.attach(name) as stream:
        refused("NON_FINITE_GRADIENT", lambda: stream.step(1, [NAN] * 7, overrides=[override]))
    assert [one.adam.lr for one in bare.get(name).spec.groups] == [1e-3, 1e-3]
    with bare.attach(name) as stream:
        assert list(stream.step(1, FULL, overrides=[override])[1].learning_rates) == [0.5, 1e-3]
        assert list(stream.step(2, FULL)[1].learning_rates) == [0.5, 1e-3]
    assert [one.adam.lr for one in bare.get(name).spec.groups] == [0.5, 1e-3]


def test_a_message_beyond_16_mib_is_refused_by_the_transport(bare: BareClient, name: str) -> None:
    """It carries no detail of ours: the message was never looked at. The server goes on."""
    with bare.attach(name) as stream:
        stream.send(
            train_pb2.Gradients(sequence=1, data=b"\0" * (17 * 2**20), last=True, header=train_pb2.BlockHeader())
        )
        with pytest.raises(Refusal) as caught:
            stream.receive()
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
    assert bare.get(name).step == 0


# --- names and pages --------------------------------------------------------------------------------------------------


def test_every_call_for_a_run_that_is_not_there_says_so(bare: BareClient) -> None:
    for missing in ("runs/nothing", "nothing", "", "runs/", "runs/" + "x" * 10_000):
        for method in ("GetRun", "DeleteRun", "ReadParameters", "ReadState"):
            request = getattr(service_pb2, f"{method}Request")(name=missing)
            refused("RUN_NOT_FOUND", lambda method=method, request=request: bare.call(method, request))  # type: ignore[misc]
        for method in ("WriteParameters", "WriteState"):
            request = getattr(service_pb2, f"{method}Request")(header={"name": missing})
            refused("RUN_NOT_FOUND", lambda method=method, request=request: bare.call(method, iter([request])))  # type: ignore[misc]
        attach = train_pb2.Attach(run=missing, worker_id="w")
        refused("RUN_NOT_FOUND", lambda attach=attach: BareStream(bare.stub, attach))  # type: ignore[misc]


@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 2**31, 2**32 - 1])
def test_absurd_page_sizes_are_capped(bare: BareClient, name: str, size: int) -> None:
    page = bare.call("ListRuns", service_pb2.ListRunsRequest(page_size=size))
    assert 1 <= len(page.runs) <= min(size or 1000, 1000)


@pytest.mark.parametrize("token", ["zzz", "runs/", "\0", "\U0010ffff", "x" * 100_000], ids=ascii)
def test_a_page_token_of_ones_own_is_a_place_in_the_order(bare: BareClient, name: str, token: str) -> None:
    page = bare.call("ListRuns", service_pb2.ListRunsRequest(page_token=token))
    assert all(run.name > token for run in page.runs)
    assert (f"runs/{name}" in [run.name for run in page.runs]) == (f"runs/{name}" > token)


# --- creation, again --------------------------------------------------------------------------------------------------


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
        eventually(lambda: hosted.used_bytes == 2 * 4 * 2 * 4, "both are open")
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
    return train_pb2.Receipt(step=step, learning_rates=[1e-3], durability=run_pb2.DURABILITY_MEMORY)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_max_parameters_bounds_a_run() -> None:
    with HostedServer(max_parameters=10) as hosted, BareClient(hosted.target) as bare:
        bare.create("fits", [group(w=[5], v=[5])], [0.0] * 10)
        error = refused("TOO_MANY_PARAMETERS", lambda: bare.create("more", [group(w=[5], v=[6])], [0.0] * 11))
        assert error.info.metadata["max_parameters"] == "10"


def test_max_memory_bounds_runs_staging_results_and_copies_together() -> None:
    """A run of 1000 float32 with AMSGrad is 16,000 bytes; gradients, a trajectory or a copy are 4,000 each row."""
    with HostedServer(max_memory=30_000) as hosted, BareClient(hosted.target) as bare:
        groups, zeros = [group(w=[1000])], [0.0] * 1000
        bare.create("one", groups, zeros)
        assert hosted.used_bytes == 16_000
        error = refused("MEMORY_LIMIT_EXCEEDED", lambda: bare.create("two", groups, zeros))
        assert dict(error.info.metadata) == {"applied": "false", "needed_bytes": "16000", "free_bytes": "14000"}
        with bare.attach("one") as stream:
            stream.step(1, zeros * 2, steps=2)
            assert hosted.used_bytes == 24_000
            assert bare.read("one")[1] == zeros
            read_state = service_pb2.ReadStateRequest(name="runs/one")
            refused("MEMORY_LIMIT_EXCEEDED", lambda: bare.call("ReadState", read_state))
            refused("MEMORY_LIMIT_EXCEEDED", lambda: write_large_state(bare))
            refused("MEMORY_LIMIT_EXCEEDED", lambda: stream.step(2, zeros * 4, steps=4))
        eventually(lambda: hosted.used_bytes == 16_000, "what the stream held is given back")
        with bare.attach("one") as stream:
            stream.step(2, zeros, returns=train_pb2.RETURNS_TRAJECTORY)
            assert hosted.used_bytes == 24_000
        eventually(lambda: hosted.used_bytes == 20_000, "the trajectory is remembered")
        bare.call("DeleteRun", service_pb2.DeleteRunRequest(name="runs/one"))
        assert hosted.used_bytes == 0
        bare.create("two", groups, zeros)


def write_large_state(bare: BareClient) -> None:
    state = service_pb2.StateHeader(tensor_steps=[0], slots=SLOTS)
    header = service_pb2.WriteStateHeader(name="runs/one", state=state)
    bare.call("WriteState", iter([service_pb2.WriteStateRequest(header=header)]))


# --- shapes and names that are allowed --------------------------------------------------------------------------------


@pytest.fixture
def server(server_process: ServerProcess) -> Iterator[Server]:
    with connect(server_process.target) as connection:
        yield connection


def ones_like(values: dict[str, Any]) -> dict[str, Any]:
    return {key: np.ones_like(value) for key, value in values.items()}


def test_scalars_and_zero_length_tensors_are_tensors(server: Server) -> None:
    shapes: list[tuple[int, ...]] = [(0,), (), (3, 0, 2), (1, 1), (0,)]
    params = {f"t{i}": np.zeros(shape, np.float32) for i, shape in enumerate(shapes)}
    with server.create_run("requests-shapes", params, AMSGrad(lr=0.5)) as run:
        for _ in range(3):
            receipt = run.step(ones_like(run.params))
        assert {key: value.shape for key, value in run.read().items()} == {f"t{i}": s for i, s in enumerate(shapes)}
        assert run.params["t1"] == pytest.approx(-1.5, rel=1e-5)
        assert receipt.gradient_norm == pytest.approx(math.sqrt(2))
        trajectory = run.step_many({key: np.ones((2, *v.shape)) for key, v in run.params.items()}, returns="trajectory")
        assert trajectory["t2"].shape == (2, 3, 0, 2)
        assert [part["step"] for part in run.state_dict()["tensors"].values()] == [5] * 5


def test_a_run_of_nothing_but_zero_length_tensors_counts_its_steps(server: Server) -> None:
    with server.create_run("requests-empty", {"w": np.zeros((0, 3))}, AMSGrad()) as run:
        assert run.step({"w": np.zeros((0, 3))}).step == 1
        assert run.step({}).gradient_norm == 0
        assert run.read()["w"].shape == (0, 3)
        assert run.state_dict()["step"] == 2


def test_a_step_without_any_gradient_is_a_step_of_the_run_and_of_no_tensor(server: Server) -> None:
    with server.create_run("requests-absent", {"w": np.ones(2, np.float32)}, AMSGrad()) as run:
        receipt = run.step({"w": None})
        assert (receipt.step, receipt.gradient_norm) == (1, 0)
        assert run.params["w"].tolist() == [1, 1]
        assert run.state_dict()["tensors"]["w"]["step"] == 0


def test_1000_tensors(server: Server) -> None:
    """Of different sizes, every third absent in every second step; each as its own t says."""
    sizes = [1 + i % 7 for i in range(1000)]
    params = {f"layer.{i}": np.zeros(size, np.float32) for i, size in enumerate(sizes)}
    with server.create_run("requests-1000", params, AMSGrad(lr=0.25, betas=(0.9, 0.99))) as run:
        for step in range(4):
            grads = ones_like(params)
            run.step({key: v for i, (key, v) in enumerate(grads.items()) if step % 2 == 0 or i % 3})
        # A constant gradient moves every element by lr in each of its steps.
        for i, value in enumerate(run.params.values()):
            np.testing.assert_allclose(value, -0.25 * (4 if i % 3 else 2), rtol=1e-5)
        assert all(np.array_equal(value, run.params[key]) for key, value in run.read().items())


def test_names_with_odd_characters_come_back_as_they_were(server: Server) -> None:
    names = ["a/b.c:0", "名前", " ", "\n", "\0", "'\"\\", "🐉" * 128, "runs/x", "..", "%s{}", "é", "e\u0301"]
    params = {name: np.full((1,), i, np.float32) for i, name in enumerate(names)}
    server.create_run("requests-names", params, AMSGrad()).close()
    with server.attach("requests-names") as run:
        assert list(run.params) == names
        assert {key: value.tolist() for key, value in run.read().items()} == {n: [i] for i, n in enumerate(names)}
        assert list(run.state_dict()["tensors"]) == names
        run.step({"\0": np.ones(1, np.float32)})
        assert [key for key in names if run.read()[key] != params[key]] == ["\0"]


# --- the Python client, before it sends -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grads", "error", "what"),
    [
        ({"w": np.ones(3, np.float32)}, ValueError, r"'w' has shape \(3,\); expected \(2,\)"),
        ({"w": np.ones((1, 2), np.float32)}, ValueError, r"'w' has shape \(1, 2\)"),
        ({"w": np.float32(1)}, ValueError, r"'w' has shape \(\)"),
        ({"W": np.ones(2, np.float32)}, ValueError, r"the gradients name \['W'\]"),
        ({"w": np.ones(2, np.int32)}, TypeError, "'w' has dtype int32"),
        ({"w": np.ones(2, np.complex64)}, TypeError, "'w' has dtype complex64"),
        ({"w": "up"}, TypeError, "'w' has dtype <U2"),
    ],
    ids=["longer", "2-d", "scalar", "unknown", "integers", "complex", "text"],
)
def test_malformed_gradients_are_not_sent(server: Server, grads: Any, error: type[Exception], what: str) -> None:
    params = {"w": np.zeros(2, np.float32), "v": np.zeros(1, np.float32)}
    with server.create_run("requests-grads", params, AMSGrad(), on_existing="replace") as run:
        with pytest.raises(error, match=what):
            run.step({"v": np.ones(1, np.float32), **grads})
        assert not run.stale
        assert run.step(ones_like(params)).step == 1


def test_bad_numbers_as_overrides_are_the_servers_refusal_and_leave_the_run(server: Server) -> None:
    with server.create_run("requests-lr", {"w": np.zeros(2, np.float32)}, AMSGrad(lr=0.5)) as run:
        bad: list[dict[str, Any]] = [{"lr": NAN}, {"lr": -1.0}, {"overrides": {0: {"betas": (0.9, NAN)}}}]
        for keywords in bad:
            with pytest.raises(InvalidHyperparameter, match="override of group 0"):
                run.step(ones_like(run.params), **keywords)
        assert run.step(ones_like(run.params)).learning_rates == (0.5,)
        assert run.step_count == 1
