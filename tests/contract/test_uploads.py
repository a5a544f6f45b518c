"""Values arrive whole, once, and in place, or nothing changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gradwire.v1 import run_pb2, service_pb2
from tests.contract.bare import BareClient, group, pack, refused, slices


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
        header.CopyFrom(
            service_pb2.CreateRunHeader(spec=run_pb2.RunSpec(name="runs/bad", groups=[group(w=[2])]), request_id="r")
        )
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
