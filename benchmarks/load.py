"""Many clients in one process, as light as they can be: one event loop, no copy of the parameters.

python benchmarks/load.py gradwire|echo TARGET PREFIX ELEMENTS

Takes commands as lines of JSON on standard input and answers each with one: ``{"create": n}`` makes n runs;
``{"attach": n}`` opens a stream to each of the first n, over a connection of its own; ``{"step": n, "seconds": s}``
lets the first n clients step for so long, each as soon as its last step is answered, and answers with the seconds that
each of their steps took. ``echo``: the server is that of `floors.py`, and a step is a message of the same bytes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc
import numpy as np

from benchmarks import floors
from benchmarks.child import ready
from gradwire.client import TorchAdam
from gradwire.v1 import run_pb2, service_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.encoding import SLICE_BYTES
from gradwire.wire.envelope import gradients_request
from gradwire.wire.service import MESSAGE_OPTIONS, SERVICE_NAME, local_options


class LightClient:
    """One run, one connection, one stream."""

    def __init__(self, target: str, name: str, elements: int) -> None:
        self._target = target
        self._name = name
        self._gradient = np.linspace(-1, 1, elements, dtype=np.float32)
        assert self._gradient.nbytes <= SLICE_BYTES, "a step of these clients is one message"
        self._sequence = 0

    async def create(self, stub: Any) -> None:
        tensors = [run_pb2.Tensor(name="x", shape=[self._gradient.size])]
        optimizer = TorchAdam(amsgrad=True).to_message()
        spec = run_pb2.RunSpec(name=f"runs/{self._name}", groups=[run_pb2.Group(tensors=tensors, adam=optimizer)])
        header = service_pb2.CreateRunHeader(spec=spec, request_id=self._name)
        values = run_pb2.Slice(data=bytes(self._gradient.nbytes))

        async def requests() -> AsyncIterator[service_pb2.CreateRunRequest]:
            yield service_pb2.CreateRunRequest(header=header)
            yield service_pb2.CreateRunRequest(slice=values)

        await stub.CreateRun(requests())

    def _open(self, method: str) -> None:
        options = [*MESSAGE_OPTIONS, *local_options(self._target), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(self._target, options)
        stream: Any = self._channel.stream_stream(method)
        self._call = stream()

    async def attach(self) -> None:
        self._open(f"/{SERVICE_NAME}/Train")
        attach = train_pb2.Attach(run=f"runs/{self._name}", worker_id="load")
        await self._call.write(train_pb2.TrainRequest(attach=attach).SerializeToString())
        assert train_pb2.TrainResponse.FromString(await self._call.read()).HasField("attached")

    async def step(self) -> float:
        """Seconds that one step took."""
        start = time.perf_counter()
        self._sequence += 1
        header = train_pb2.BlockHeader(steps=1)
        message = train_pb2.Gradients(sequence=self._sequence, last=True, header=header)
        await self._call.write(gradients_request(message, self._gradient))
        received = 0
        while True:
            answer = train_pb2.TrainResponse.FromString(await self._call.read()).parameters
            received += len(answer.data)
            if answer.HasField("receipt"):
                break
        assert received == self._gradient.nbytes
        return time.perf_counter() - start

    async def steps(self, seconds: float) -> list[float]:
        """Steps one after another for so long."""
        until = time.perf_counter() + seconds
        taken = []
        while time.perf_counter() < until:
            taken.append(await self.step())
        return taken


class EchoClient(LightClient):
    """The same bytes, there and back."""

    async def create(self, stub: Any) -> None:
        pass

    async def attach(self) -> None:
        self._open(floors.METHOD)
        await self.step()

    async def step(self) -> float:
        start = time.perf_counter()
        await self._call.write(self._gradient.tobytes())
        assert len(await self._call.read()) == self._gradient.nbytes
        return time.perf_counter() - start


async def answer(kind: str, target: str, prefix: str, elements: int) -> None:
    make = EchoClient if kind == "echo" else LightClient
    clients: list[LightClient] = []
    attached = 0
    loop = asyncio.get_running_loop()
    async with grpc.aio.insecure_channel(target, local_options(target)) as channel:
        stub = service_pb2_grpc.OptimizerServiceStub(channel)
        ready(None)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            said: object = None
            match json.loads(line):
                case {"create": count}:
                    clients = [make(target, f"{prefix}-{index}", elements) for index in range(count)]
                    for client in clients:
                        await client.create(stub)
                case {"attach": count}:
                    for client in clients[attached:count]:
                        await client.attach()
                    attached = count
                case {"step": count, "seconds": seconds}:
                    said = await asyncio.gather(*(client.steps(seconds) for client in clients[:count]))
            ready(said)


if __name__ == "__main__":
    asyncio.run(answer(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
