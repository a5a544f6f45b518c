"""Safetensors files that lie about themselves are refused by name, and nothing of what they claim is allocated."""

from __future__ import annotations

import copy
import json
import logging
import math
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from gradwire.v1 import run_pb2, service_pb2, train_pb2
from gradwire.wire.errors import GradwireError
from tests.contract.bare import BareClient, BareStream, amsgrad, group
from tests.faults.hosted import HostedServer
from tests.faults.outcomes import outcome


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedServer]:
    with HostedServer(max_memory=64 * 2**20, max_parameters=10_000) as server:
        yield server


@pytest.fixture
def owner(hosted: HostedServer, caplog: pytest.LogCaptureFixture) -> Iterator[BareClient]:
    """Leaves no run, and sees to it that nothing is logged as an error."""
    with BareClient(hosted.target) as client:
        yield client
        for run in client.call("ListRuns", service_pb2.ListRunsRequest()).runs:
            client.call("DeleteRun", service_pb2.DeleteRunRequest(name=run.name))
    assert not [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


def file_of(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES = {
    "a header beyond the file": file_of({"w": tensor()}, length=2**20),
    "a header of 2^63": file_of({"w": tensor()}, length=2**63),
    "a header of 2^64-1": file_of({"w": tensor()}, length=2**64 - 1),
    "a header of 0": file_of({"w": tensor()}, length=0),
    "no JSON": file_of(b"{'w'"),
    "a list": file_of([1, 2]),
    "deep JSON": file_of(b'{"w":' + b"[" * 100_000),
    "no UTF-8": file_of(b'{"\xff\xfe": 1}'),
    "overlapping offsets": file_of({"w": tensor(), "v": tensor(offsets=(4, 12))}, bytes(12)),
    "the same offsets": file_of({"w": tensor(), "v": tensor()}),
    "offsets backwards": file_of({"w": tensor(offsets=(8, 0))}),
    "offsets beyond the file": file_of({"w": tensor(offsets=(0, 2**40), shape=(2**38,))}),
    "offsets of 2^64": file_of({"w": tensor(offsets=(2**64 - 8, 2**64))}),
    "negative offsets": file_of({"w": tensor(offsets=(-8, 0))}),
    "a hole": file_of({"w": tensor(), "v": tensor(offsets=(12, 20))}, bytes(20)),
    "more than is said": file_of({"w": tensor()}, bytes(100)),
    "a dtype of another size": file_of({"w": tensor("F64")}),
    "a dtype that there is not": file_of({"w": tensor("F33")}),
    "a dtype that runs do not have": file_of({"w": tensor("I64", (1,))}),
    "a shape that overflows": file_of({"w": tensor(shape=(2**32, 2**32))}),
    "a shape that overflows to what is there": file_of({"w": tensor(shape=(2**63, 2, 2))}),
    "a negative shape": file_of({"w": tensor(shape=(-1, -2))}),
    "a shape of fractions": file_of({"w": tensor(shape=(2.0,))}),
    "too many elements": file_of({"w": tensor(shape=(10_001,), offsets=(0, 40_004))}, bytes(40_004)),
    "a name twice": file_of(b'{"w":%s,"w":%s}' % ((json.dumps(tensor()).encode(),) * 2)),
    "metadata of numbers": file_of({"__metadata__": {"gradwire": 5}, "w": tensor()}),
    "not even a length": b"\x08",
}


def imported(owner: BareClient, content: bytes, weights_only: bool = True) -> GradwireError | None:
    """The refusal."""
    groups = [run_pb2.Group(adam=amsgrad())] if weights_only else []
    header = service_pb2.ImportRunHeader(name="runs/new", request_id="r", weights_only=weights_only, groups=groups)
    messages = [service_pb2.ImportRunRequest(header=header), service_pb2.ImportRunRequest(data=content)]
    return outcome(owner, "ImportRun", messages)


def test_a_file_that_says_what_it_holds_is_imported(owner: BareClient) -> None:
    """So that what the others are refused for is the lie."""
    assert imported(owner, file_of({"w": tensor()}, struct.pack("<2f", 1, 2))) is None
    assert owner.read("new")[1] == [1.0, 2.0]


@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie(hosted: HostedServer, owner: BareClient, lie: str) -> None:
    used = hosted.used_bytes
    for weights_only in (True, False):
        refusal = imported(owner, LIES[lie], weights_only)
        if lie == "a name twice" and weights_only:
            return  # JSON leaves open what that means
        assert refusal is not None
        assert refusal.reason in ("INVALID_SPEC", "TOO_MANY_PARAMETERS", "MEMORY_LIMIT_EXCEEDED"), refusal
        assert owner.call("ListRuns", service_pb2.ListRunsRequest()).runs == []
        assert hosted.used_bytes == used


@pytest.mark.parametrize("said", ["[[[[", "5", "null", "{}", "[" * 20_000, '{"format": 1e999}', "\0"])
def test_descriptions_that_are_no_run(owner: BareClient, said: str) -> None:
    refusal = imported(owner, file_of({"__metadata__": {"gradwire": said}, "w": tensor()}), weights_only=False)
    assert refusal is not None
    assert refusal.reason == "INVALID_SPEC"


def exported(owner: BareClient) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """(header, description, elements) of a good file."""
    owner.create("x", [group(w=[2])], [1.0, 2.0])
    _, *parts = owner.call("ExportRun", service_pb2.ExportRunRequest(name="runs/x"))
    content = b"".join(part.data for part in parts)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["gradwire"]), content[8 + length :]


LARGE = [2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 2**200, 2**2000, 1e308]
NUMBERS: list[object] = [*LARGE, -1, math.nan, math.inf, True, "1", None, [], {}]


@pytest.mark.parametrize("field", ["step", "tensor_steps", "format", "shape", "lr", "low", "clip_norm", "optimizer"])
def test_a_description_with_numbers_that_no_run_has(owner: BareClient, field: str) -> None:
    header, good, elements = exported(owner)
    for number in NUMBERS:
        data = copy.deepcopy(good)
        if field == "tensor_steps":
            data[field] = [number]
        elif field == "shape":
            data["spec"]["tensors"] = [[["w", [number]]]]
        elif field == "clip_norm":
            data["spec"][field] = number
        elif field in ("lr", "low", "optimizer"):
            data["groups"][0][field] = number
        else:
            data[field] = number
        changed = {**header, "__metadata__": {"gradwire": json.dumps(data)}}
        refusal = imported(owner, file_of(changed, elements), weights_only=False)
        if refusal is None:
            attach = train_pb2.Attach(run="runs/new", worker_id="w")
            with BareStream(owner.stub, attach) as stream:
                stream.step(1, [1.0, 1.0])
            owner.call("DeleteRun", service_pb2.DeleteRunRequest(name="runs/new"))
        else:
            assert refusal.reason in ("INVALID_SPEC", "INVALID_HYPERPARAMETER", "TOO_MANY_PARAMETERS"), refusal
