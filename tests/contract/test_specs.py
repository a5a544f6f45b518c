"""Specs that the contract does not allow are refused by name, before anything is allocated."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from gradwire.v1 import run_pb2, service_pb2
from tests.contract.bare import BareClient, Refusal, amsgrad, group, refused
from tests.serving import ServerProcess

NAN, INF = math.nan, math.inf
UNKNOWN: Any = 99  # an enum's number that no version has given a name


def spec_of(*groups: run_pb2.Group, **fields: Any) -> run_pb2.RunSpec:
    return run_pb2.RunSpec(**{"name": "runs/bad", "groups": groups, **fields})


def create(bare: BareClient, spec: run_pb2.RunSpec, **header: Any) -> service_pb2.CreateRunResponse:
    """CreateRun with a spec as it is and no values."""
    whole_header = service_pb2.CreateRunHeader(**{"spec": spec, "request_id": "r", **header})
    response: service_pb2.CreateRunResponse = bare.call(
        "CreateRun", iter([service_pb2.CreateRunRequest(header=whole_header)])
    )
    return response


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


def test_int8_is_refused_where_whole_vectors_travel(bare: BareClient, name: str) -> None:
    int8 = run_pb2.ENCODING_INT8
    refusal = refused("PROTOCOL_VIOLATION", lambda: create(bare, spec_of(W), encoding=int8))
    assert "INT8 is an encoding of gradients" in str(refusal)
    read = service_pb2.ReadParametersRequest(name=f"runs/{name}", encoding=int8)
    refused("PROTOCOL_VIOLATION", lambda: bare.call("ReadParameters", read))
    refused("PROTOCOL_VIOLATION", lambda: bare.write(name, [], encoding=int8))


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
    assert time.monotonic() - started < 20
