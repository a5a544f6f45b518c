"""Many clients at once, in every order: nothing deadlocks, nothing is torn, nothing is left over."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest

from gradwire.client import AMSGrad, connect
from gradwire.v1 import service_pb2, service_pb2_grpc, train_pb2
from gradwire.wire.errors import InternalError
from tests.faults.bare import (
    BareStream,
    Floats,
    Stub,
    create,
    fresh_name,
    read_parameters,
    refusal_of,
    spec_of,
    value_slices,
)
from tests.faults.gated import BULK, gradient
from tests.faults.hosted import HostedServer, eventually
from tests.serving import ServerProcess


@pytest.mark.parametrize("size", [5, 200_000])
def test_threads_take_turns_on_one_run(process: ServerProcess, size: int) -> None:
    threads, steps = 4, 15
    with connect(process.target) as server:
        run = server.create_run(fresh_name("threads"), {"w": gradient(size, 0)}, AMSGrad(lr=0.01))
        twin = server.create_run(fresh_name("twin"), {"w": gradient(size, 0)}, AMSGrad(lr=0.01))
        seen: list[int] = []

        def work() -> None:
            seen.extend(run.step({"w": gradient(size, 1)}).step for _ in range(steps))

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert sorted(seen) == list(range(1, threads * steps + 1))
        for _ in range(threads * steps):
            twin.step({"w": gradient(size, 1)})
        assert np.array_equal(run.params["w"], twin.params["w"])
        assert np.array_equal(run.params["w"], run.read()["w"])


@pytest.mark.parametrize("size", [7, BULK])
def test_32_runs_with_interleaved_commits(process: ServerProcess, stub: Stub, size: int) -> None:
    """All of them end where one that is alone ends."""
    names = [fresh_name("interleaved") for _ in range(32)]
    for name in names:
        create(stub, spec_of(name, size), gradient(size, 0))
    streams = [BareStream(stub, name) for name in names]
    order = random.Random(0)
    for sequence in range(1, 6):
        for stream in order.sample(streams, len(streams)):
            stream.send_block(sequence, gradient(size, sequence))
        for stream in order.sample(streams, len(streams)):
            assert stream.answer()[1].step == sequence
    for stream in streams:
        stream.finish()
    alone = fresh_name("alone")
    create(stub, spec_of(alone, size), gradient(size, 0))
    stream = BareStream(stub, alone)
    for sequence in range(1, 6):
        stream.step(sequence, gradient(size, sequence))
    stream.finish()
    expected = read_parameters(stub, alone).tobytes()
    for name in names:
        assert read_parameters(stub, name).tobytes() == expected


MOST_STEPS = 400


def digest(values: Floats) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def expected(process: ServerProcess) -> dict[int, str]:
    """Step -> digest of the parameters after so many steps of always the same gradient."""
    with connect(process.target) as server:
        run = server.create_run(fresh_name("expected"), {"w": gradient(BULK, 0)}, AMSGrad(lr=0.01))
        digests = {0: digest(run.params["w"])}
        for _ in range(MOST_STEPS):
            receipt = run.step({"w": gradient(BULK, 1)})
            digests[receipt.step] = digest(run.params["w"])
        server.delete_run(run.name)
    return digests


class Chaos:
    """A client that does one thing after another, as the dice fall, and gives up in the middle of some."""

    def __init__(self, stub: Any, names: list[str], expected: dict[int, str], seed: int) -> None:
        self._stub = stub
        self._names = names
        self._expected = expected
        self._dice = random.Random(seed)
        self.steps = 0

    async def play(self, turns: int) -> None:
        for _ in range(turns):
            name = self._dice.choice(self._names)
            act = self._dice.choice([self._train, self._train, self._train, self._read, self._delete, self._create])
            try:
                await act(name)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.CANCELLED:
                    refusal = refusal_of(error)
                    assert not isinstance(refusal, InternalError), refusal

    async def _train(self, name: str) -> None:
        attach = train_pb2.Attach(
            run=f"runs/{name}", worker_id=self._dice.choice("ab"), takeover=self._dice.random() < 0.5
        )
        call = self._stub.Train()
        await call.write(train_pb2.TrainRequest(attach=attach))
        if self._dice.random() < 0.1:
            call.cancel()
            return
        answer = await call.read()
        await self._check_end(call, answer)
        attached = answer.attached
        sequence, step = attached.last_sequence, attached.step
        for _ in range(self._dice.randint(0, 4)):
            again = sequence > 0 and self._dice.random() < 0.2
            sequence += not again
            receipt = await self._block(call, sequence)
            if receipt is None:
                return
            if not again:
                step += 1
            assert receipt.step == step or receipt.repeated
            self.steps += not receipt.repeated
        await call.done_writing()
        await self._check_end(call, await call.read())

    async def _block(self, call: Any, sequence: int) -> train_pb2.Receipt | None:
        """Sends a block and reads its answer; None: it gave up on the way."""
        given_up_at = self._dice.choice([None, None, None, 0, 1, 2])
        values, third = gradient(BULK, 1), BULK // 3
        returns = self._dice.choice([train_pb2.RETURNS_LAST, train_pb2.RETURNS_TRAJECTORY, train_pb2.RETURNS_NONE])
        for index, start in enumerate((0, third, 2 * third)):
            stop = BULK if index == 2 else start + third
            message = train_pb2.Gradients(
                sequence=sequence, offset=start, data=values[start:stop].tobytes(), last=index == 2
            )
            if index == 0:
                message.header.CopyFrom(train_pb2.BlockHeader(returns=returns))
            try:
                await call.write(train_pb2.TrainRequest(gradients=message))
            except asyncio.InvalidStateError:  # the server has ended the call
                await self._check_end(call, grpc.aio.EOF)
            if given_up_at == index:
                call.cancel()
                return None
        while True:
            answer = await call.read()
            await self._check_end(call, answer)
            if answer.parameters.HasField("receipt"):
                receipt: train_pb2.Receipt = answer.parameters.receipt
                return receipt

    async def _check_end(self, call: Any, answer: Any) -> None:
        """Raises what the server ended the call with, if it has ended it."""
        if answer is grpc.aio.EOF and await call.code() is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
            )

    async def _read(self, name: str) -> None:
        header, parts = service_pb2.ReadParametersHeader(), []
        async for answer in self._stub.ReadParameters(service_pb2.ReadParametersRequest(name=f"runs/{name}")):
            if answer.HasField("header"):
                header = answer.header
            parts.append(answer.slice.data)
            if self._dice.random() < 0.1:
                return
        assert digest(np.frombuffer(b"".join(parts), np.float32)) == self._expected[header.step]

    async def _delete(self, name: str) -> None:
        await self._stub.DeleteRun(service_pb2.DeleteRunRequest(name=f"runs/{name}"))

    async def _create(self, name: str) -> None:
        header = service_pb2.CreateRunHeader(
            spec=spec_of(name, BULK), request_id=str(self._dice.random()), replace=self._dice.random() < 0.3
        )
        short = self._dice.random() < 0.2

        async def requests() -> AsyncIterator[service_pb2.CreateRunRequest]:
            yield service_pb2.CreateRunRequest(header=header)
            for part in value_slices(gradient(BULK, 0)[: BULK - short]):
                yield service_pb2.CreateRunRequest(slice=part)

        call = self._stub.CreateRun(requests())
        if self._dice.random() < 0.1:
            for _ in range(self._dice.randrange(20)):
                await asyncio.sleep(0)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
            return
        await call


@pytest.mark.parametrize("seed", range(5))
def test_chaos(hosted: HostedServer, connect_bare: Callable[[str], Stub], expected: dict[int, str], seed: int) -> None:
    """Attaching, training, reading, deleting and creating, in any order and with any of it given up."""
    stub, names = connect_bare(hosted.target), [fresh_name("chaos") for _ in range(2)]
    for name in names:
        create(stub, spec_of(name, BULK), gradient(BULK, 0))

    async def play() -> int:
        async with grpc.aio.insecure_channel(hosted.target) as channel:
            players = [
                Chaos(service_pb2_grpc.OptimizerServiceStub(channel), names, expected, 100 * seed + number)
                for number in range(4)
            ]
            await asyncio.wait_for(asyncio.gather(*(player.play(40) for player in players)), 60)
        return sum(player.steps for player in players)

    assert asyncio.run(play()) > 10, "too little has happened for this to mean anything"
    eventually(lambda: hosted.handler_tasks() == 0, "all calls have ended")
    for run in hosted.call(lambda: hosted.registry.page("", 0)[0]):
        assert not run.exclusive._lock.locked()
        assert run.holder is None
        assert run.tensor_steps.tolist() == [run.step]
        assert digest(read_parameters(stub, run.spec.name.removeprefix("runs/"))) == expected[run.step]
    # All of it still works.
    name = names[0]
    create(stub, spec_of(name, BULK), gradient(BULK, 0), replace=True)
    stream = BareStream(stub, name)
    assert stream.step(1, gradient(BULK, 1)).step == 1
    stream.finish()
    assert digest(read_parameters(stub, name)) == expected[1]
