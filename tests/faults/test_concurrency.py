"""Many clients at once, in every order: nothing deadlocks, nothing is torn, nothing is left over."""

from __future__ import annotations

import hashlib
import random
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import numpy as np
import pytest

from gradwire.client import AMSGrad, connect
from gradwire.v1 import service_pb2
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
from tests.faults.hosted import HostedServer, InBackground, eventually
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

    def __init__(self, stub: Stub, names: list[str], expected: dict[int, str], seed: int) -> None:
        self._stub = stub
        self._names = names
        self._expected = expected
        self._dice = random.Random(seed)
        self.steps = 0

    def play(self, steps: int) -> None:
        """Goes on until so many steps of its own have been acknowledged."""
        acts = [*[self._train] * 6, self._read, self._delete, self._create, self._create]
        while self.steps < steps:
            try:
                self._dice.choice(acts)(self._dice.choice(self._names))
            except grpc.RpcError as error:
                call: Any = error
                if call.code() is not grpc.StatusCode.CANCELLED:
                    refusal = refusal_of(error)
                    assert not isinstance(refusal, InternalError), refusal

    def _train(self, name: str) -> None:
        stream = BareStream(self._stub, name, self._dice.choice("ab"), takeover=self._dice.random() < 0.5)
        sequence, step = stream.attached.last_sequence, stream.attached.step
        for _ in range(self._dice.randint(0, 4)):
            again = sequence > 0 and self._dice.random() < 0.2
            sequence += not again
            stream.send_block(sequence, gradient(BULK, 1), slice_elements=BULK // 3, returns=self._dice.randint(1, 3))
            if self._dice.random() < 0.2:
                if self._dice.random() < 0.5:
                    stream.receive()
                stream.cancel()
                return
            receipt = stream.answer()[1]
            assert receipt.repeated is again
            step += not again
            assert again or receipt.step == step
            self.steps += not again
        stream.finish()

    def _read(self, name: str) -> None:
        header, parts = service_pb2.ReadParametersHeader(), []
        answers: Any = self._stub.ReadParameters(service_pb2.ReadParametersRequest(name=f"runs/{name}"))
        for answer in answers:
            if answer.HasField("header"):
                header = answer.header
            parts.append(answer.slice.data)
            if self._dice.random() < 0.1:
                answers.cancel()
        assert digest(np.frombuffer(b"".join(parts), np.float32)) == self._expected[header.step]

    def _delete(self, name: str) -> None:
        call = self._stub.DeleteRun.future(service_pb2.DeleteRunRequest(name=f"runs/{name}"))
        self._give_up_or_wait(call)

    def _create(self, name: str) -> None:
        replace, missing = self._dice.random() < 0.5, int(self._dice.random() < 0.2)
        header = service_pb2.CreateRunHeader(spec=spec_of(name, BULK), request_id=uuid.uuid4().hex, replace=replace)
        requests = [service_pb2.CreateRunRequest(header=header)]
        for part in value_slices(gradient(BULK, 0)[: BULK - missing]):
            requests.append(service_pb2.CreateRunRequest(slice=part))
        self._give_up_or_wait(self._stub.CreateRun.future(iter(requests)))

    def _give_up_or_wait(self, call: Any) -> None:
        if self._dice.random() < 0.2:
            time.sleep(self._dice.random() * 0.01)
            call.cancel()
        with suppress(grpc.FutureCancelledError):
            call.result()


@pytest.mark.parametrize("seed", range(5))
def test_chaos(hosted: HostedServer, connect_bare: Callable[[str], Stub], expected: dict[int, str], seed: int) -> None:
    """Attaching, training, reading, deleting and creating, in any order and with any of it given up."""
    stub, names = connect_bare(hosted.target), [fresh_name("chaos") for _ in range(2)]
    for name in names:
        create(stub, spec_of(name, BULK), gradient(BULK, 0))
    players = [Chaos(connect_bare(hosted.target), names, expected, 100 * seed + number) for number in range(4)]
    with ExitStack() as ended:
        games = [ended.enter_context(InBackground(lambda player=player: player.play(12))) for player in players]  # type: ignore[misc]
        for game in games:
            game.result()
    eventually(lambda: hosted.handler_tasks() == 0, "all calls have ended")
    for run in hosted.call(lambda: hosted.registry.runs()):
        assert not run.lock._lock.locked()
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
