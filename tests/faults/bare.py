"""The contract driven by hand, with nothing of ``gradwire.client``: every message is the test's own."""

from __future__ import annotations

import itertools
import queue
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.rpc import status_pb2

from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.errors import STATUS_DETAILS_KEY, GradwireError, RunBusy, from_status
from gradwire.wire.service import MAX_MESSAGE_BYTES
from tests.faults.hosted import WAIT_SECONDS

Floats = npt.NDArray[np.float32]
Stub = service_pb2_grpc.OptimizerServiceStub

SLICE_ELEMENTS = 2**16

_names = itertools.count()


def channel_to(target: str) -> grpc.Channel:
    """A connection that shares nothing with others."""
    return grpc.insecure_channel(
        target,
        [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + 2**16),
            ("grpc.max_send_message_length", 4 * MAX_MESSAGE_BYTES),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


def fresh_name(prefix: str) -> str:
    """A run name that no other test uses."""
    return f"{prefix}-{next(_names)}-{uuid.uuid4().hex[:8]}"


def spec_of(
    name: str,
    size: int,
    policy: run_pb2.NonFinitePolicy.ValueType = run_pb2.NON_FINITE_POLICY_REJECT,
    **adam: Any,
) -> run_pb2.RunSpec:
    """One float32 AMSGrad tensor ``w`` of ``size`` elements."""
    spec = run_pb2.RunSpec(name=f"runs/{name}", non_finite_policy=policy)
    group = spec.groups.add(adam=run_pb2.Adam(**{"lr": 0.01, "amsgrad": True, **adam}))
    group.tensors.add(name="w", shape=[size])
    return spec


def create(stub: Stub, spec: run_pb2.RunSpec, values: Floats, **header: Any) -> service_pb2.CreateRunResponse:
    """Creates a run with these initial values."""

    def requests() -> Iterator[service_pb2.CreateRunRequest]:
        request_id = header.pop("request_id", uuid.uuid4().hex)
        yield service_pb2.CreateRunRequest(
            header=service_pb2.CreateRunHeader(spec=spec, request_id=request_id, **header)
        )
        for part in value_slices(values):
            yield service_pb2.CreateRunRequest(slice=part)

    return stub.CreateRun(requests(), timeout=WAIT_SECONDS)


def value_slices(values: Floats) -> Iterator[run_pb2.Slice]:
    for start in range(0, values.size, SLICE_ELEMENTS):
        yield run_pb2.Slice(offset=start, data=values[start : start + SLICE_ELEMENTS].tobytes())


def write_parameters(stub: Stub, name: str, values: Floats) -> service_pb2.WriteParametersResponse:
    """Replaces the parameters of ``runs/name``."""
    header = service_pb2.WriteParametersHeader(name=f"runs/{name}")
    requests = [service_pb2.WriteParametersRequest(header=header)]
    requests += [service_pb2.WriteParametersRequest(slice=part) for part in value_slices(values)]
    return stub.WriteParameters(iter(requests), timeout=WAIT_SECONDS)


def read_parameters(stub: Stub, name: str) -> Floats:
    """The parameters of ``runs/name``."""
    answers = stub.ReadParameters(service_pb2.ReadParametersRequest(name=f"runs/{name}"), timeout=WAIT_SECONDS)
    return np.frombuffer(b"".join(answer.slice.data for answer in answers), np.float32)


def delete(stub: Stub, name: str) -> int:
    """Deletes ``runs/name``; returns its step."""
    return stub.DeleteRun(service_pb2.DeleteRunRequest(name=f"runs/{name}"), timeout=WAIT_SECONDS).step


def fingerprint(stub: Stub, name: str) -> dict[str, Any]:
    """Everything about a run that a refused step must leave alone, bit by bit."""
    run = stub.GetRun(service_pb2.GetRunRequest(name=f"runs/{name}"), timeout=WAIT_SECONDS).run
    run.spec.name = ""
    state = list(stub.ReadState(service_pb2.ReadStateRequest(name=f"runs/{name}"), timeout=WAIT_SECONDS))
    return {
        "step": run.step,
        "hyperparameters": run.spec.SerializeToString(deterministic=True),
        "tensor_steps": list(state[0].header.tensor_steps),
        "slots": [(part.slice.slot, part.slice.offset, part.slice.data) for part in state[1:]],
        "parameters": read_parameters(stub, name).tobytes(),
    }


def refusal_of(error: grpc.RpcError) -> GradwireError:
    """The error of our table that a failed call carries."""
    call: Any = error
    for key, value in call.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            status = status_pb2.Status()
            status.ParseFromString(value)
            assert status.code == call.code().value[0]
            refusal = from_status(status)
            assert refusal is not None
            return refusal
    raise AssertionError(f"a status of the transport, not of gradwire: {call.code()}: {call.details()}")


class BareStream:
    """A Train stream, attached on construction; ``attached`` is the answer.

    Raises grpc.RpcError wherever the server ends the stream with a status.
    """

    def __init__(
        self, stub: Stub, name: str, worker_id: str = "worker", *, timeout: float = WAIT_SECONDS, **attach: Any
    ) -> None:
        self._requests: queue.SimpleQueue[train_pb2.TrainRequest | None] = queue.SimpleQueue()
        self.call: Any = stub.Train(iter(self._requests.get, None), timeout=timeout)
        message = train_pb2.Attach(run=f"runs/{name}", worker_id=worker_id, **attach)
        self._requests.put(train_pb2.TrainRequest(attach=message))
        try:
            self.attached: train_pb2.Attached = next(self.call).attached
        except BaseException:
            self.cancel()
            raise

    def send(self, sequence: int, gradients: Floats, *, start: int = 0, last: bool = True, **header: Any) -> None:
        """One message: columns from ``start`` on of the block ``[K, n]``; ``header`` with it where any is given."""
        message = train_pb2.Gradients(sequence=sequence, offset=start, data=gradients.tobytes(), last=last)
        if header:
            message.header.CopyFrom(train_pb2.BlockHeader(**header))
        self.send_message(message)

    def send_message(self, message: train_pb2.Gradients) -> None:
        self._requests.put(train_pb2.TrainRequest(gradients=message))

    def send_block(
        self, sequence: int, gradients: Floats, *, slice_elements: int = SLICE_ELEMENTS, **header: Any
    ) -> None:
        """A whole block ``[n]`` or ``[K, n]``, in slices."""
        rows = np.atleast_2d(gradients)
        starts = range(0, rows.shape[1], slice_elements)
        for start in starts:
            self.send(
                sequence,
                rows[:, start : start + slice_elements],
                start=start,
                last=start == starts[-1],
                **({"steps": rows.shape[0], **header} if start == 0 else {}),
            )

    def receive(self) -> train_pb2.Parameters:
        parameters: train_pb2.Parameters = next(self.call).parameters
        return parameters

    def answer(self) -> tuple[list[train_pb2.Parameters], train_pb2.Receipt]:
        """All messages up to the receipt, and the receipt."""
        parts = []
        while True:
            parts.append(self.receive())
            if parts[-1].HasField("receipt"):
                return parts, parts[-1].receipt

    def step(self, sequence: int, gradients: Floats, **header: Any) -> train_pb2.Receipt:
        """Sends a block and returns its receipt."""
        self.send_block(sequence, gradients, **header)
        return self.answer()[1]

    def refusal(self) -> GradwireError:
        """Reads on until the server ends the stream, and returns why."""
        try:
            while True:
                next(self.call)
        except grpc.RpcError as error:
            return refusal_of(error)
        except StopIteration:
            raise AssertionError("the server ended the stream without a status") from None

    def cancel(self) -> None:
        """Drops the stream, as a client that dies does."""
        self._requests.put(None)
        self.call.cancel()

    def finish(self) -> None:
        """Ends the stream in order and waits until the server has ended it too."""
        self._requests.put(None)
        for _ in self.call:
            pass


def attach_when_free(stub: Stub, name: str, worker_id: str) -> BareStream:
    """Attaches as soon as no other worker holds the run."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return BareStream(stub, name, worker_id)
        except grpc.RpcError as error:
            if not isinstance(refusal_of(error), RunBusy) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def values_of(parts: Sequence[train_pb2.Parameters], size: int) -> Floats:
    """The ``[rows, size]`` values of an answer."""
    rows = max(part.steps for part in parts)
    values = np.full((rows, size), np.nan, np.float32)
    for part in parts:
        data = np.frombuffer(part.data, np.float32).reshape(part.steps, -1)
        values[part.first_step : part.first_step + part.steps, part.offset : part.offset + data.shape[1]] = data
    return values
