"""A client written from the .proto files alone: generated code, grpc, and struct. Nothing of gradwire's own Python.

Tests drive runs with it, and make the mistakes that the Python client cannot make.
"""

from __future__ import annotations

import queue
import struct
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc, train_pb2

TIMEOUT_SECONDS = 30.0


def pack(values: Sequence[float]) -> bytes:
    """float32, little-endian, densely packed."""
    return struct.pack(f"<{len(values)}f", *values)


def unpack(data: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def amsgrad(**fields: Any) -> run_pb2.Adam:
    return run_pb2.Adam(amsgrad=True, **fields)


def group(optimizer: run_pb2.Adam | None = None, /, **shapes: Sequence[int]) -> run_pb2.Group:
    """A group of tensors, AMSGrad if nothing else is said."""
    tensors = [run_pb2.Tensor(name=name, shape=shape) for name, shape in shapes.items()]
    return run_pb2.Group(tensors=tensors, adam=optimizer or amsgrad())


def slices(values: Sequence[float], *cuts: int) -> list[run_pb2.Slice]:
    """A whole vector, cut at some places; the pieces come last first."""
    edges = [0, *cuts, len(values)]
    pairs = [(edges[i], edges[i + 1]) for i in range(len(edges) - 1)]
    return [run_pb2.Slice(offset=a, data=pack(values[a:b])) for a, b in reversed(pairs)]


class Refusal(Exception):
    """A failed call: its status code, and the ErrorInfo in its details."""

    def __init__(self, error: grpc.RpcError) -> None:
        call: Any = error
        self.code: grpc.StatusCode = call.code()
        self.status = status_pb2.Status()
        self.info = error_details_pb2.ErrorInfo()
        super().__init__(f"{self.code.name}: {call.details()}")
        for key, value in call.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                self.status.ParseFromString(value)
                assert self.status.details[0].Unpack(self.info)
                assert (self.status.code, self.status.message) == (self.code.value[0], call.details())

    @property
    def reason(self) -> str:
        return str(self.info.reason)

    @property
    def applied(self) -> str:
        return str(self.info.metadata["applied"])


class BareClient:
    """A channel and a stub. Raises Refusal, never grpc.RpcError.

    Args:
        token: what it says that it is; None: nothing.
    """

    def __init__(self, target: str, token: str | None = None) -> None:
        self.target = target
        self.metadata: tuple[tuple[str, str], ...] = ()
        if token is not None:
            self.metadata = (("authorization", f"Bearer {token}"),)
        limits = [("grpc.max_receive_message_length", 17 * 2**20), ("grpc.max_send_message_length", 64 * 2**20)]
        self._channel = grpc.insecure_channel(target, options=limits)
        self.stub = service_pb2_grpc.OptimizerServiceStub(self._channel)

    def __enter__(self) -> BareClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(self, method: str, request: Any) -> Any:
        """The response of a unary or upload call; the list of responses of a server stream."""
        try:
            result = getattr(self.stub, method)(request, timeout=TIMEOUT_SECONDS, metadata=self.metadata)
            return list(result) if isinstance(result, grpc.Call) and hasattr(result, "__iter__") else result
        except grpc.RpcError as error:
            raise Refusal(error) from None

    def create(
        self,
        name: str,
        groups: Sequence[run_pb2.Group],
        values: Sequence[float] | Sequence[run_pb2.Slice],
        request_id: str = "request",
        replace: bool = False,
        **spec: Any,
    ) -> service_pb2.CreateRunResponse:
        """CreateRun; ``values`` are numbers, or slices of one's own."""
        whole = run_pb2.RunSpec(name=f"runs/{name}", groups=groups, **spec)
        header = service_pb2.CreateRunHeader(spec=whole, request_id=request_id, replace=replace)
        parts = [value for value in values if isinstance(value, run_pb2.Slice)]
        parts = parts or slices([value for value in values if not isinstance(value, run_pb2.Slice)])
        requests = [service_pb2.CreateRunRequest(slice=part) for part in parts]
        response: service_pb2.CreateRunResponse = self.call(
            "CreateRun", iter([service_pb2.CreateRunRequest(header=header), *requests])
        )
        return response

    def get(self, name: str) -> run_pb2.Run:
        run: run_pb2.Run = self.call("GetRun", service_pb2.GetRunRequest(name=f"runs/{name}")).run
        return run

    def read(self, name: str) -> tuple[service_pb2.ReadParametersHeader, list[float]]:
        header, *parts = self.call("ReadParameters", service_pb2.ReadParametersRequest(name=f"runs/{name}"))
        values: list[float] = []
        for part in parts:
            assert part.slice.offset == len(values)
            values += unpack(part.slice.data)
        return header.header, values

    def write(self, name: str, values: Sequence[run_pb2.Slice], **header: Any) -> service_pb2.WriteParametersResponse:
        """WriteParameters."""
        first = service_pb2.WriteParametersHeader(name=f"runs/{name}", **header)
        requests = [service_pb2.WriteParametersRequest(slice=part) for part in values]
        response: service_pb2.WriteParametersResponse = self.call(
            "WriteParameters", iter([service_pb2.WriteParametersRequest(header=first), *requests])
        )
        return response

    def attach(self, name: str, worker_id: str = "worker", **fields: Any) -> BareStream:
        attach = train_pb2.Attach(run=f"runs/{name}", worker_id=worker_id, **fields)
        return BareStream(self.stub, attach, self.metadata)


class BareStream:
    """An attached Train stream; ``attached`` is its first answer. gRPC writes in a thread of its own."""

    def __init__(
        self,
        stub: service_pb2_grpc.OptimizerServiceStub,
        attach: train_pb2.Attach | None,
        metadata: tuple[tuple[str, str], ...] = (),
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._requests: queue.SimpleQueue[train_pb2.TrainRequest | None] = queue.SimpleQueue()
        self.call: Any = stub.Train(iter(self._requests.get, None), timeout=timeout_seconds, metadata=metadata)
        if attach is not None:
            self.send(train_pb2.TrainRequest(attach=attach))
            self.attached: train_pb2.Attached = self.receive().attached

    def send(self, *messages: train_pb2.TrainRequest | train_pb2.Gradients) -> None:
        for message in messages:
            if isinstance(message, train_pb2.Gradients):
                message = train_pb2.TrainRequest(gradients=message)
            self._requests.put(message)

    def receive(self) -> train_pb2.TrainResponse:
        try:
            response: train_pb2.TrainResponse = next(self.call)
        except grpc.RpcError as error:
            raise Refusal(error) from None
        return response

    def answer(self) -> Iterator[train_pb2.Parameters]:
        """The parts of one block's answer, the one with the receipt last."""
        while True:
            part = self.receive().parameters
            yield part
            if part.HasField("receipt"):
                return

    def step(
        self, sequence: int, values: Sequence[float], offset: int = 0, **header: Any
    ) -> tuple[dict[int, list[float]], train_pb2.Receipt]:
        """A block in one message; the answer as offset -> values, and its receipt."""
        self.send(whole(sequence, values, offset, **header))
        parts = list(self.answer())
        return {part.offset: unpack(part.data) for part in parts if part.data}, parts[-1].receipt

    def close(self) -> None:
        """Ends the stream in order: the server has let go of the run when this returns."""
        self._requests.put(None)
        try:
            for _ in self.call:
                pass
        except grpc.RpcError:
            pass  # it had ended already

    def __enter__(self) -> BareStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def whole(sequence: int, values: Sequence[float], offset: int = 0, **header: Any) -> train_pb2.Gradients:
    """A block in one message."""
    return train_pb2.Gradients(
        sequence=sequence, offset=offset, data=pack(values), last=True, header=train_pb2.BlockHeader(**header)
    )


def refused(reason: str, call: Callable[[], object]) -> Refusal:
    """What ``call`` is refused with; nothing may have been applied."""
    with pytest.raises(Refusal) as caught:
        call()
    assert caught.value.reason == reason, caught.value
    assert caught.value.applied == "false"
    return caught.value
