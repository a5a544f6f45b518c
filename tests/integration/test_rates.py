"""A tenant that goes faster than it may waits, before its next block and with nothing held; the others do not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, connect
from gradwire.server.access.pacing import Pace
from gradwire.server.access.quotas import Quotas
from gradwire.server.memory.shared_memory import SharedMemory
from gradwire.server.rpc.stream_guard import StreamGuard
from gradwire.v1 import run_pb2, service_pb2
from gradwire.wire.errors import Draining, GradwireError
from tests.contract.bare import BareClient, BareStream, Refusal, group, refused, whole
from tests.faults.hosted import HostedServer, eventually
from tests.integration.access import AccessFile, secret_of, two_tenants


@pytest.fixture
def access(tmp_path: Path) -> AccessFile:
    return two_tenants(tmp_path)


@pytest.fixture
def hosted(access: AccessFile, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostedServer]:
    monkeypatch.setattr("gradwire.server.rpc.calls.LOOK_SECONDS", 0.02)
    access.quotas["lab"] = "steps_per_second = 10"
    access.write()
    with HostedServer(access=str(access.path)) as server:
        yield server


@pytest.fixture
def lab(hosted: HostedServer) -> Iterator[BareClient]:
    with BareClient(hosted.target, secret_of("lab")) as client:
        client.create("a", [group(w=[1])], [0.0], request_id="a")
        yield client


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited for; nobody waits."""
    found: list[float] = []

    async def keep(guard: StreamGuard, pace: Pace | None, longest_seconds: float = math.inf) -> float:
        seconds = 0.0 if pace is None else min(pace.wait_seconds(), longest_seconds)
        if seconds:
            found.append(seconds)
            await guard.read(lambda: asyncio.sleep(0))
        return seconds

    monkeypatch.setattr(StreamGuard, "keep", keep)
    return found


def block(stream: BareStream, sequence: int, steps: int) -> Any:
    return stream.step(sequence, [1.0] * steps, steps=steps)[1]


def in_debt(lab: BareClient, name: str = "a") -> BareStream:
    """A stream that waits for most of a minute."""
    stream = lab.attach(name)
    block(stream, 1, 600)
    return stream


def test_the_block_is_answered_and_the_next_one_waits(lab: BareClient, pauses: list[float]) -> None:
    with lab.attach("a") as stream:
        assert block(stream, 1, 10).paced_seconds == 0.0
        block(stream, 2, 100)
        paced = block(stream, 3, 1).paced_seconds
        assert 0 < paced <= 10.1


def test_it_is_really_waited(lab: BareClient, hosted: HostedServer) -> None:
    with connect(hosted.target, token=secret_of("lab")) as server, server.attach("a") as run:
        run.step_many({"w": np.ones((13, 1), np.float32)})
        receipt = run.step({"w": np.ones(1, np.float32)})
        assert receipt.paced_seconds > 0


def test_a_new_stream_pays_for_the_old_one(lab: BareClient, pauses: list[float]) -> None:
    with lab.attach("a") as stream:
        block(stream, 1, 50)

    with lab.attach("a") as stream:
        assert block(stream, 2, 1).paced_seconds > 0


def test_a_repeat_is_no_step(lab: BareClient, pauses: list[float]) -> None:
    with lab.attach("a") as stream:
        block(stream, 1, 10)
    with lab.attach("a") as stream:
        for _ in range(100):
            assert block(stream, 1, 10).repeated
    assert all(seconds < 0.2 for seconds in pauses)


def test_who_closes_its_side_does_not_wait(lab: BareClient, pauses: list[float]) -> None:
    with in_debt(lab):
        pass
    assert not pauses


def test_others_do_not_wait(hosted: HostedServer, lab: BareClient) -> None:
    with BareClient(hosted.target, secret_of("other")) as other, in_debt(lab):
        other.create("a", [group(w=[1])], [0.0], request_id="a")
        with other.attach("a") as stream:
            for sequence in range(1, 20):
                assert block(stream, sequence, 100).paced_seconds == 0.0


def test_too_many_steps_at_once_are_refused(lab: BareClient, access: AccessFile) -> None:
    with lab.attach("a") as stream:
        error = refused("QUOTA_EXCEEDED", lambda: block(stream, 1, 601))
    assert (error.info.metadata["quota"], error.info.metadata["max_steps"]) == ("steps_per_second", "600")
    with lab.attach("a") as stream:
        block(stream, 1, 600)
    access.quotas["lab"] = "steps_per_second = 1"
    access.write()

    def limits() -> str:
        return str(lab.call("WhoAmI", service_pb2.WhoAmIRequest()))

    eventually(lambda: "limit: 1\n" in limits(), "the file is taken")


def test_streams_share_what_a_minute_allows(lab: BareClient, pauses: list[float]) -> None:
    """Else each of them would send as much at once as all of them may in a minute."""
    lab.create("b", [group(w=[1])], [0.0], request_id="b")
    with lab.attach("a") as one, lab.attach("b") as two:
        block(one, 1, 300)
        error = refused("QUOTA_EXCEEDED", lambda: block(two, 1, 301))
        assert error.info.metadata["max_steps"] == "300"


def test_a_repeat_of_what_would_be_too_much_now_is_answered(
    lab: BareClient, access: AccessFile, pauses: list[float]
) -> None:
    with lab.attach("a") as stream:
        block(stream, 1, 600)
    access.quotas["lab"] = "steps_per_second = 1"
    access.write()
    eventually(lambda: "limit: 1\n" in str(lab.call("WhoAmI", service_pb2.WhoAmIRequest())), "the file is taken")
    with lab.attach("a") as stream:
        assert block(stream, 1, 600).repeated
        refused("QUOTA_EXCEEDED", lambda: block(stream, 2, 600))


def refusal_of(stream: BareStream) -> Refusal:
    with pytest.raises(Refusal) as caught:
        stream.receive()
    return caught.value


def test_a_drain_ends_the_wait(hosted: HostedServer, lab: BareClient) -> None:
    stream = in_debt(lab)
    stream.send(whole(2, [1.0]))
    hosted.drain()
    error = refusal_of(stream)
    assert (error.reason, error.applied) == (Draining.reason, "false")


def test_a_revocation_ends_the_wait(lab: BareClient, access: AccessFile) -> None:
    stream = in_debt(lab)
    stream.send(whole(2, [1.0]))
    access.remove("lab")
    error = refusal_of(stream)
    assert (error.reason, error.applied) == ("PERMISSION_REVOKED", "false")


def test_a_fence_ends_the_wait(lab: BareClient) -> None:
    stream = in_debt(lab)
    with lab.attach("a"):  # which holds no lock
        assert refusal_of(stream).reason == "FENCED"


def test_bytes_count_in_both_directions(
    hosted: HostedServer, lab: BareClient, access: AccessFile, pauses: list[float]
) -> None:
    elements = 300_000
    access.quotas["lab"] = 'bytes_per_second = "1MiB"'
    access.write()
    eventually(lambda: "bytes_per_second" in str(lab.call("WhoAmI", service_pb2.WhoAmIRequest())), "it is taken")
    pace = hosted.registry.ledger.pace_of("lab")
    assert pace is not None
    pace._clock = lambda: 1000.0  # nothing is paid back
    values = [0.0] * elements
    lab.create("big", [group(w=[elements])], values, durability=run_pb2.DURABILITY_MEMORY)  # in one message
    uploaded = list(pauses)
    assert uploaded
    assert uploaded[-1] <= 1.2
    lab.read("big")
    assert pauses[-1] > uploaded[-1]  # in three messages
    with lab.attach("big") as stream:
        before = stream.step(1, values)[1].paced_seconds
        after = stream.step(2, values)[1].paced_seconds
    assert after == pytest.approx(before + 2 * 4 * elements / 2**20)


def test_use_of_rates_is_told(lab: BareClient) -> None:
    found = {q.name: (q.used, q.limit) for q in lab.call("WhoAmI", service_pb2.WhoAmIRequest()).quotas}
    assert found["steps_per_second"] == (0, 10)
    with in_debt(lab):
        used = {q.name: q.used for q in lab.call("WhoAmI", service_pb2.WhoAmIRequest()).quotas}
    assert 100 < used["steps_per_second"] <= 610


def test_a_refusal_says_when_to_try_again(lab: BareClient, access: AccessFile, hosted: HostedServer) -> None:
    access.quotas["lab"] = "runs = 1"
    access.write()
    eventually(lambda: '"runs"' in str(lab.call("WhoAmI", service_pb2.WhoAmIRequest())), "the file is taken")
    with connect(hosted.target, token=secret_of("lab")) as server, pytest.raises(GradwireError) as caught:
        server.create_run("b", {"w": np.ones(1, np.float32)}, AMSGrad())
    assert caught.value.retry_seconds == 60.0


def test_who_waits_has_answered_the_offer_of_shared_memory(
    access: AccessFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken back where nobody answers in time, and what has not been read is no answer."""
    heard: list[str] = []
    confirm = SharedMemory.confirm

    def confirmed(memory: SharedMemory, proof: bytes, in_place: bool = False) -> None:
        heard.append("answered")
        confirm(memory, proof, in_place)

    async def keep(guard: StreamGuard, pace: Pace | None, longest_seconds: float = math.inf) -> float:
        heard.append("waits")
        return 1.0

    access.quotas["lab"] = 'bytes_per_second = "1MiB"'
    access.write()
    values = {"w": np.zeros(500_000, np.float32)}
    listen = (f"unix:{tmp_path}/s",)
    with (
        HostedServer(access=str(access.path), listen=listen) as hosted,
        connect(hosted.target, token=secret_of("lab")) as server,
    ):
        server.create_run("a", values, AMSGrad()).close()
        monkeypatch.setattr(StreamGuard, "keep", keep)
        monkeypatch.setattr(SharedMemory, "confirm", confirmed)
        with server.attach("a", shared_memory=True) as run:
            assert run.step(values).paced_seconds > 0
    assert heard[-1] == "waits"
    assert "answered" in heard


def test_steps_count_though_nobody_waits_for_their_answer(hosted: HostedServer, lab: BareClient) -> None:
    run = hosted.registry.get("tenants/lab/runs/a")
    stream = lab.attach("a")
    stream.send(whole(1, [1.0] * 600, steps=600))
    eventually(lambda: run.step == 600, "the block is applied")
    stream.call.cancel()
    pace = hosted.registry.ledger.pace_of("lab")
    assert pace is not None
    assert pace.level("steps_per_second", 10) > 100


def test_what_is_used_can_be_told_whatever_the_rate_has_become() -> None:
    quotas = Quotas(steps_per_second=1)
    pace = Pace(lambda: quotas)
    pace.use(60, 0)
    assert pace.level("steps_per_second", 2**63 - 1) == 2**63 - 1


def test_what_waits_is_counted(hosted: HostedServer, lab: BareClient, access: AccessFile) -> None:
    lab.create("big", [group(w=[250_000])], [0.0] * 250_000, durability=run_pb2.DURABILITY_MEMORY)
    with in_debt(lab), lab.attach("big") as stream:
        before = hosted.used_bytes
        stream.send(whole(1, [1.0] * 250_000))
        eventually(lambda: hosted.used_bytes == before + 1_000_000, "the block waits")
        hosted.drain()


def test_who_waits_is_said_to(hosted: HostedServer, lab: BareClient, access: AccessFile) -> None:
    stream = in_debt(lab)
    stream.send(whole(2, [1.0]))

    def waits() -> list[str]:
        found = lab.call("ListWorkers", service_pb2.ListWorkersRequest(name="runs/a")).workers
        return [worker.wait.text for worker in found]

    eventually(lambda: waits() == ["the rate of its tenant, which is used up"], "its rate is what it waits for")
    stream.call.cancel()
    eventually(lambda: waits() == [], "it has gone")
