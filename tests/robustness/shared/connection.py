"""What a worker needs of a server, by the contract alone: calls, and whole answers."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc

from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc, train_pb2
from tests.contract.bare import Refusal
from tests.robustness.shared.setting import Setting
from tests.robustness.shared.worker_stream import TIMEOUT_SECONDS, WorkerStream

_OPTIONS = [
    ("grpc.max_receive_message_length", 17 * 2**20),
    ("grpc.use_local_subchannel_pool", 1),  # another worker's failures are none of this one's
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 5000),  # which is how long an attempt may take
    ("grpc.max_reconnect_backoff_ms", 100),
]


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:20]


class Connection:
    """A channel of one's own to a run's server. Methods raise Refusal."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self.stub = service_pb2_grpc.OptimizerServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def attach(self, attach: train_pb2.Attach) -> WorkerStream:
        return WorkerStream(self.stub, attach, self._target)

    def create(self, setting: Setting) -> None:
        header = service_pb2.CreateRunHeader(spec=setting.spec(), request_id=setting.name)
        first = run_pb2.Slice(data=setting.initial().tobytes())
        requests = [service_pb2.CreateRunRequest(header=header), service_pb2.CreateRunRequest(slice=first)]
        self.call("CreateRun", iter(requests))

    def get(self, setting: Setting) -> run_pb2.Run:
        run: run_pb2.Run = self.call("GetRun", service_pb2.GetRunRequest(name=f"runs/{setting.name}")).run
        return run

    def lr(self, setting: Setting) -> float:
        """The learning rate that is in force."""
        (group,) = self.get(setting).spec.groups
        return float(getattr(group, str(group.WhichOneof("optimizer"))).lr)

    def accepted(self, setting: Setting) -> dict[str, int]:
        """The last accepted sequence of each worker that the server has seen since its start."""
        found = self.call("ListWorkers", service_pb2.ListWorkersRequest(name=f"runs/{setting.name}"))
        return {worker.worker_id: worker.last_accepted_sequence for worker in found.workers}

    def read(self, setting: Setting, uid: str = "") -> tuple[int, int, bytes]:
        """Step, epoch and parameters."""
        request = service_pb2.ReadParametersRequest(name=f"runs/{setting.name}", run_uid=uid)
        header, *parts = self.stream("ReadParameters", request)
        return header.header.step, header.header.epoch, b"".join(part.slice.data for part in parts)

    def state(self, setting: Setting) -> tuple[list[int], dict[str, bytes]]:
        """Steps of the tensors, and the slots."""
        header, *parts = self.stream("ReadState", service_pb2.ReadStateRequest(name=f"runs/{setting.name}"))
        slots = dict.fromkeys(header.header.slots, b"")
        for part in parts:
            slots[header.header.slots[part.slice.slot]] += part.slice.data
        return list(header.header.tensor_steps), slots

    def write(self, setting: Setting, data: bytes) -> service_pb2.WriteParametersResponse:
        """Other parameters, all of them."""
        first = service_pb2.WriteParametersHeader(name=f"runs/{setting.name}")
        requests = [
            service_pb2.WriteParametersRequest(header=first),
            service_pb2.WriteParametersRequest(slice=run_pb2.Slice(data=data)),
        ]
        response: service_pb2.WriteParametersResponse = self.call("WriteParameters", iter(requests))
        return response

    def call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self.stub, method)(request, timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            raise Refusal(error) from None

    def stream(self, method: str, request: Any) -> list[Any]:
        try:
            return list(getattr(self.stub, method)(request, timeout=TIMEOUT_SECONDS))
        except grpc.RpcError as error:
            raise Refusal(error) from None
