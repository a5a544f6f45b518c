"""Promise: whichever way its messages and values take, a stream keeps the same promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from gradwire.client import AMSGrad, Draining, Fenced, NonFiniteGradient, RetryPolicy, Run, Server, Shared, connect
from gradwire.client.training import attach_message
from gradwire.client.transport.grpc_stream import StreamEnded
from gradwire.client.transport.stream import TrainStream
from gradwire.v1 import train_pb2
from tests.faults.bare import fresh_name
from tests.faults.gated import BULK, GatedDevice, gradient
from tests.faults.hosted import HostedServer, InBackground, eventually
from tests.lanes.conftest import has_lane

Gradients = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Way:
    """How a stream goes, and of how many elements its run is."""

    name: str
    size: int
    lane: bool = False
    region: bool = False

    def check(self, run: Run) -> None:
        """That the present stream does go so."""
        stream = run._attachment.stream
        assert stream is not None
        assert (has_lane(run), stream.memory is not None) == (self.lane, self.region)

    def values(self, seed: int, steps: int | None = None) -> Gradients:
        return {"w": gradient(self.size, seed, steps)}

    def create(self, server: Server, name: str = "", **options: Any) -> Run:
        run = server.create_run(name or fresh_name("way"), self.values(0), AMSGrad(lr=0.01), **options)
        self.check(run)
        return run


WAYS = [
    Way("gRPC", 3),
    Way("gRPC, several messages", BULK),
    Way("region", BULK, region=True),
    Way("lane", 3, lane=True),
    Way("lane and region", BULK, lane=True, region=True),
]

Connecting = Callable[[str], Any]


@pytest.fixture(params=WAYS, ids=lambda way: str(way.name))
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


@pytest.fixture
def connected(way: Way, monkeypatch: pytest.MonkeyPatch) -> Connecting:
    """Connections whose streams go that way."""
    if not way.lane:
        monkeypatch.setattr(attach_message, "AVAILABLE", False)
    return lambda target: connect(target, shared_memory=way.lane or way.region)


@pytest.fixture
def server(hosted: HostedServer, connected: Connecting) -> Iterator[Server]:
    with connected(hosted.target) as connection:
        yield connection


def undisturbed(plain: Server, way: Way, steps: int) -> list[bytes]:
    """The parameters after each of some steps through gRPC."""
    with plain.create_run(fresh_name("twin"), way.values(0), AMSGrad(lr=0.01)) as twin:
        after = []
        for seed in range(1, steps + 1):
            twin.step(way.values(seed))
            after.append(twin.params["w"].tobytes())
        return after


def test_the_same_numbers(server: Server, plain: Server, way: Way) -> None:
    ours = way.create(server)
    theirs = plain.create_run(fresh_name("twin"), way.values(0), AMSGrad(lr=0.01))
    found: list[list[bytes]] = []
    for run in (ours, theirs):
        receipts = [run.step(way.values(1)), run.step(way.values(2), lr=0.1)]
        blocks = [run.step_many(way.values(3, 4), returns=returns) for returns in ("trajectory", "none", "last")]
        norms = [np.float64(receipt.gradient_norm).tobytes() for receipt in receipts]
        found.append([*norms, *(each.tobytes() for block in blocks for each in (block or {}).values())])
    assert found[0] == found[1]
    assert ours.step_count == theirs.step_count == 14
    way.check(ours)


def test_what_is_refused_is_not_applied_and_the_next_step_is_made(server: Server, plain: Server, way: Way) -> None:
    """For the same reason as through gRPC."""
    run = way.create(server)
    wrong = way.values(1)
    wrong["w"][-1] = np.inf
    said = []
    for each in (run, plain.create_run(fresh_name("twin"), way.values(0), AMSGrad(lr=0.01))):
        with pytest.raises(NonFiniteGradient) as caught:
            each.step(wrong)
        assert caught.value.applied is False
        said.append(str(caught.value).replace(each.name, ""))
    assert said[0] == said[1]
    assert run.step(way.values(1)).step == 1
    assert [run.params["w"].tobytes()] == undisturbed(plain, way, 1)
    way.check(run)


@contextmanager
def losing(what: str) -> Iterator[list[bool]]:
    """The next block, or the answer to it, is lost; yields whether later answers are repeats."""
    lost = False
    repeated: list[bool] = []
    patch = pytest.MonkeyPatch()
    send, collect = TrainStream.send, TrainStream.collect

    def losing_send(stream: TrainStream, *arguments: Any, **options: Any) -> None:
        if lost or what == "answer":
            send(stream, *arguments, **options)

    def losing_collect(stream: TrainStream, *arguments: Any) -> train_pb2.Receipt:
        nonlocal lost
        if lost or what == "answer":
            receipt = collect(stream, *arguments)
            if lost:
                repeated.append(receipt.repeated)
                return receipt
        lost = True
        raise StreamEnded("lost")

    patch.setattr(TrainStream, "send", losing_send)
    patch.setattr(TrainStream, "collect", losing_collect)
    try:
        yield repeated
    finally:
        patch.undo()


@pytest.mark.parametrize("what", ["block", "answer"])
def test_what_is_lost_is_applied_once(server: Server, plain: Server, way: Way, what: str) -> None:
    run = way.create(server)
    run.step(way.values(1))
    with losing(what) as repeated:
        assert run.step(way.values(2)).step == 2
    assert repeated == [what == "answer"]
    assert run.step(way.values(3)).step == 3
    assert run.params["w"].tobytes() == run.read()["w"].tobytes() == undisturbed(plain, way, 3)[-1]


def test_who_takes_over_fences_the_older_stream(server: Server, plain: Server, way: Way) -> None:
    older = way.create(server, worker_id="one")
    older.step(way.values(1))
    newer = plain.attach(older.name, worker_id="two", takeover=True)
    newer.step(way.values(2))
    with pytest.raises(Fenced) as caught:
        older.step(way.values(3))
    assert caught.value.applied is False
    assert newer.step(way.values(3)).step == 3
    assert [newer.params["w"].tobytes()] == undisturbed(plain, way, 3)[-1:]


def test_values_that_are_written_end_it_and_it_goes_on_from_them(server: Server, way: Way) -> None:
    run = way.create(server)
    run.step(way.values(1))
    run.write(way.values(9))
    assert run.step(way.values(2)).step == 2
    way.check(run)
    assert run.params["w"].tobytes() == run.read()["w"].tobytes()


def test_a_drain_answers_what_has_arrived_whole(
    caplog: pytest.LogCaptureFixture, device: GatedDevice, connected: Connecting, way: Way
) -> None:
    retry = RetryPolicy(deadline_seconds=0.0)
    with HostedServer(device) as hosted, connected(hosted.target) as server:
        run = way.create(server, retry=retry)
        if way.size == BULK:
            with device.hold("commit") as gate, InBackground(lambda: run.step(way.values(1))) as step:
                gate.wait_entered()
                with InBackground(hosted.refuse_work):
                    eventually(lambda: hosted.registry.draining, "it drains")
                    gate.release()
                assert step.result().step == 1
        else:
            run.step(way.values(1))
            hosted.refuse_work()
        with pytest.raises(Draining) as caught:
            run.step(way.values(2))
        assert caught.value.applied is False
        assert run.step_count == 1


def test_what_is_journaled_is_there_in_the_next_server(
    tmp_path: Path, connected: Connecting, plain: Server, way: Way
) -> None:
    with HostedServer(data_dir=str(tmp_path)) as hosted, connected(hosted.target) as server:
        run = way.create(server, "kept", durability="JOURNAL")
        for seed in (1, 2, 3):
            assert run.step(way.values(seed)).durability == "JOURNAL"
        way.check(run)
        run.close()
    with HostedServer(data_dir=str(tmp_path)) as hosted, connected(hosted.target) as server:
        again = server.attach("kept")
        assert again.step_count == 3
        assert [again.params["w"].tobytes()] == undisturbed(plain, way, 3)[-1:]
        way.check(again)


def test_a_round_of_a_shared_run(server: Server, plain: Server, way: Way) -> None:
    """The other worker goes through gRPC."""
    name = fresh_name("shared")
    first = way.create(server, name, workers=Shared(quorum=2), worker_id="one")
    second = plain.attach(name, worker_id="two")
    for seed in (1, 2):
        with InBackground(lambda seed=seed: second.step(way.values(seed))) as other:  # type: ignore[misc]
            receipt = first.step(way.values(seed + 10))
        assert (receipt.outcome, receipt.contributors, other.result().outcome) == ("accepted", 2, "accepted")
        assert first.params["w"].tobytes() == second.params["w"].tobytes()
    way.check(first)
    second.close()
    first.close()


def test_an_ended_call_ends_every_wait(hosted: HostedServer, server: Server, device: GatedDevice, way: Way) -> None:
    """A peer that was stopped leaves its socket open: gRPC's keepalive ends the call, and nobody goes on waiting."""
    run = way.create(server)
    run.step(way.values(1))
    stream = run._attachment.stream
    assert stream is not None
    with InBackground(stream.receive) as waiting:
        stream._grpc.cancel()
        with pytest.raises(grpc.RpcError):
            waiting.result()
    eventually(lambda: hosted.handlers() == 0, "the server's side has ended")
    assert run.step(way.values(2)).step == 2
