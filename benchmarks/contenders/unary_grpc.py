"""A naive gRPC server: one unary call a step, all gradients in one protobuf message, all parameters in another."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from benchmarks.child import Child, leave_with_parent, ready
from benchmarks.contenders.problem import Array, Contender, Problem
from benchmarks.contenders.torch_server import TorchServer

_METHOD = "/benchmarks.Naive/Step"
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]


def _message() -> Any:
    """``message Tensors { repeated bytes data = 1; }``, without a generator."""
    file = descriptor_pb2.FileDescriptorProto(name="benchmarks/naive.proto", package="benchmarks", syntax="proto3")
    kind = descriptor_pb2.FieldDescriptorProto
    field = kind(name="data", number=1, type=kind.TYPE_BYTES, label=kind.LABEL_REPEATED)
    file.message_type.add(name="Tensors").field.append(field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("benchmarks.Tensors"))


Tensors = _message()


class NaiveUnary(Contender):
    def __init__(self, problem: Problem) -> None:
        self._child = Child(["-m", __spec__.name, problem.to_text()], threads=problem.threads)
        self._channel = grpc.insecure_channel(self._child.said, _OPTIONS)
        self._call: Any = self._channel.unary_unary(_METHOD, Tensors.SerializeToString, Tensors.FromString)

    def step(self, gradients: Sequence[Array]) -> Sequence[Array]:
        answer = self._call(Tensors(data=[gradient.tobytes() for gradient in gradients]))
        return [np.frombuffer(data, np.float32) for data in answer.data]

    def close(self) -> None:
        self._channel.close()
        self._child.close()


def _serve(problem: Problem) -> None:
    optimizer = TorchServer(problem)

    def step(request: Any, context: object) -> Any:
        gradients = [torch.frombuffer(bytearray(data), dtype=torch.float32) for data in request.data]
        return Tensors(data=[value.numpy().tobytes() for value in optimizer.step(gradients)])

    server = grpc.server(ThreadPoolExecutor(1), options=_OPTIONS)
    _, service, name = _METHOD.split("/")
    method: Any = grpc.unary_unary_rpc_method_handler(step, Tensors.FromString, Tensors.SerializeToString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    leave_with_parent()
    ready(f"127.0.0.1:{port}")
    server.wait_for_termination()


if __name__ == "__main__":
    _serve(Problem.from_text(sys.argv[1]))
