"""The limits of each number, not-a-number in each float, and control characters in each text of every request."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from gradwire.v1 import service_pb2, train_pb2
from tests.contract.bare import BareClient, BareStream, amsgrad, group
from tests.faults.fields import FLOATS, INTEGERS, paths, shown, with_value
from tests.faults.hosted import HostedServer, eventually
from tests.faults.outcomes import FOR_EVER_SECONDS, Bystander, outcome
from tests.integration.access import AccessFile, secret_of

SERVICE = service_pb2.DESCRIPTOR.services_by_name["OptimizerService"]
METHODS = {method.name: method for method in SERVICE.methods}
BOUNDARIES = [2**31 - 1, 2**31, 2**32 - 1, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
TEXTS = [
    "\0",
    "runs/a\nb",
    "runs/\x1b[31mred",
    "runs/a\u202eb",
    "runs/\x7f",
    "tenants/a\nb/runs/x",
    "runs/\u2028",
    "\x85",
]


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedServer]:
    folder = tmp_path_factory.mktemp("fields")
    access = AccessFile(folder / "access.toml")
    for name, tenant in (("owner", "lab"), ("bystander", "other")):
        access.add(name, tenant, "train")
    access.add("admin", "lab", "admin")
    settings: dict[str, Any] = {"max_memory": 64 * 2**20, "max_parameters": 10_000, "stall_timeout_seconds": 5.0}
    with HostedServer(access=str(access.path), data_dir=str(folder / "data"), **settings) as server:
        yield server


@pytest.fixture
def owner(hosted: HostedServer, caplog: pytest.LogCaptureFixture) -> Iterator[BareClient]:
    """Has one run at first, none in the end, and sees to it that nothing is logged as an error."""
    with BareClient(hosted.target, secret_of("owner")) as client:
        client.create("x", [group(w=[2])], [0.0, 0.0])
        yield client
        for run in client.call("ListRuns", service_pb2.ListRunsRequest()).runs:
            client.call("DeleteRun", service_pb2.DeleteRunRequest(name=run.name))
    assert not [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


@pytest.fixture(scope="module")
def bystander(hosted: HostedServer) -> Iterator[Bystander]:
    with BareClient(hosted.target, secret_of("bystander")) as client:
        client.create("x", [group(w=[2])], [0.0, 0.0])
        attach = train_pb2.Attach(run="runs/x", worker_id="bystander")
        with BareStream(client.stub, attach, client.metadata, FOR_EVER_SECONDS) as stream:
            yield Bystander(stream)


def requests(method: str) -> list[Any]:
    """A good stream."""
    request: Any = getattr(service_pb2, f"{method}Request", None)
    data = struct.pack("<2f", 1, 2)
    if method == "Train":
        attach = train_pb2.Attach(run="runs/x", worker_id="w", takeover=True)
        block = train_pb2.Gradients(sequence=1, data=data, last=True, header=train_pb2.BlockHeader(steps=1))
        return [train_pb2.TrainRequest(attach=attach), train_pb2.TrainRequest(gradients=block)]
    if method == "CreateRun":
        spec = {"name": "runs/new", "groups": [group(amsgrad(), w=[2])]}
        header = {"spec": spec, "request_id": "r", "replace": True}
        return [request(header=header), request(slice={"data": data})]
    if method in ("WriteParameters", "WriteState"):
        state = {"state": {"slots": ["exp_avg"], "tensor_steps": [0]}} if method == "WriteState" else {}
        return [request(header={"name": "runs/x", **state}), request(slice={"data": data})]
    if method == "ImportRun":
        return [request(header={"name": "runs/new", "request_id": "r"}), request(data=b"x")]
    if method == "ForkRun":
        return [request(name="runs/x", new_name="runs/new", request_id="r", replace=True)]
    return [request(name="runs/x") if "name" in request.DESCRIPTOR.fields_by_name else request()]


def is_number(field: FieldDescriptor) -> bool:
    return field.cpp_type in INTEGERS


def is_float(field: FieldDescriptor) -> bool:
    return field.cpp_type in FLOATS


def is_text(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_STRING


def methods_with(wanted: Any) -> list[str]:
    return [name for name, method in METHODS.items() if any(paths(method.input_type, wanted))]


@pytest.mark.parametrize("method", methods_with(is_number))
def test_the_limits_of_each_number(hosted: HostedServer, owner: BareClient, bystander: Bystander, method: str) -> None:
    """Answered or refused by name, and nothing of that size is allocated: 2^64 of anything is beyond every bound."""
    used = hosted.used_bytes
    for path in paths(METHODS[method].input_type, is_number):
        low, high = INTEGERS[path[-1].cpp_type]
        for value in {*(number for number in BOUNDARIES if number <= high), low, high}:
            outcome(owner, method, with_value(requests(method), path, value))
        bystander.steps()
    eventually(lambda: hosted.used_bytes <= used + 2000, "nothing large is held")  # a run of two elements, perhaps


@pytest.mark.parametrize("method", methods_with(is_float))
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf, 5e-324, -5e-324])
def test_not_a_number_in_each_float(owner: BareClient, bystander: Bystander, method: str, value: float) -> None:
    for path in paths(METHODS[method].input_type, is_float):
        refusal = outcome(owner, method, with_value(requests(method), path, value))
        if math.isnan(value):
            assert refusal is not None, shown(path)
            # A scalar may be NaN; what is refused is that it has no name.
            message = path[-1].full_name.split(".")[-2]
            of_a_stream = message in ("Contribution", "Scalar", "ScalarBuckets", "StreamSeriesRequest")
            reasons = ("PROTOCOL_VIOLATION",) if of_a_stream else ("INVALID_HYPERPARAMETER", "INVALID_SPEC")
            assert refusal.reason in reasons, shown(path)
            assert refusal.applied is False
    bystander.steps()


@pytest.mark.parametrize("method", methods_with(is_text))
@pytest.mark.parametrize("token", ["owner", "admin"])
def test_control_characters_in_each_text(
    owner: BareClient, hosted: HostedServer, caplog: pytest.LogCaptureFixture, method: str, token: str
) -> None:
    """No answer and no line of the log has them in it: a terminal would obey."""
    caplog.set_level(logging.DEBUG, "gradwire")
    with BareClient(hosted.target, secret_of(token)) as client:
        for path in paths(METHODS[method].input_type, is_text):
            for text in TEXTS:
                refusal = outcome(client, method, with_value(requests(method), path, text))
                assert refusal is None or refusal.message.isprintable(), shown(path)
    for record in caplog.records:
        if record.name.startswith("gradwire"):
            assert record.levelno < logging.ERROR
            assert record.getMessage().isprintable()
    names = [run.name for run in owner.call("ListRuns", service_pb2.ListRunsRequest()).runs]
    assert set(names) <= {"runs/x", "runs/new"}
