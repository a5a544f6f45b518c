"""Contributions are combined where their workers have written them, where that can harm nobody but their own share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import AMSGrad, NonFiniteGradient, Receipt, Run, Server, Shared, connect
from gradwire.v1 import service_pb2_grpc, train_pb2
from tests.contract.shared_runs import UNDERSTANDS
from tests.faults.bare import Stub, channel_to
from tests.faults.bare import fresh_name as fresh
from tests.faults.gated import GatedDevice
from tests.faults.hosted import HostedServer, eventually
from tests.shared_memory.test_hostile_clients import BYTES, GRADIENT, SIZE, HostileStream

OTHER = np.random.default_rng(2).standard_normal(SIZE, np.float32)
LIE = np.random.default_rng(3).standard_normal(SIZE, np.float32)
NAN = np.full(SIZE, np.nan, np.float32)
LARGE = 1_500_000
"""Several slices."""


@pytest.fixture
def honest(hosted: HostedServer) -> Iterator[Server]:
    with connect(hosted.target, shared_memory=False) as connection:
        yield connection


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def shared_run(connection: Server, workers: Shared | None = None, **options: Any) -> Run:
    """A run, and its worker ``b``."""
    return connection.create_run(
        fresh("lies"),
        {"w": np.zeros(SIZE, np.float32)},
        AMSGrad(lr=0.01),
        workers=workers or Shared(quorum=2, deadline_seconds=300),
        worker_id="b",
        **options,
    )


class Liar(HostileStream):
    """The worker ``a``, whose first contribution is GRADIENT at first."""

    def __init__(self, stub: Stub, run: Run, **attach: Any) -> None:
        super().__init__(stub, run.name, worker_id="a", understands=UNDERSTANDS, **attach)

    def contribute(self, hosted: HostedServer, run: Run) -> None:
        """Returns when it waits in the open round."""
        self.write(0, GRADIENT)
        contribution = train_pb2.Contribution(base_step=self.attached.step, base_epoch=self.attached.epoch)
        self.gradients(0, BYTES, header=train_pb2.BlockHeader(steps=1, contribution=contribution))
        rounds: Any = hosted.run_of(run.name).shared_workers
        eventually(lambda: hosted.call(lambda: rounds.waiting("a") is not None), "a contribution waits")

    def die(self) -> None:
        """As a process that is killed."""
        self.cancel()
        self.region.close()
        self.file.close()


def plain_round(connection: Server, *gradients: Any) -> Any:
    """The parameters after one round of these, which came through gRPC."""
    run = shared_run(connection, Shared(quorum=1))
    run.step({"w": np.mean(np.array(gradients, np.float64), axis=0).astype(np.float32)})
    run.close()
    return run.params["w"].tobytes()


@pytest.mark.parametrize(
    ("policy", "clip_norm", "clip", "copied"),
    [
        ("reject", None, "contribution", False),
        ("allow", None, "contribution", False),
        ("reject", 1e9, "round", False),
        ("skip", None, "contribution", True),
        ("reject", 1e9, "contribution", True),
    ],
)
def test_no_copy_is_made_where_none_is_needed(
    hosted: HostedServer, aside: ThreadPoolExecutor, policy: str, clip_norm: float | None, clip: Any, copied: bool
) -> None:
    """A copy would be counted: it is kept for the next contribution. The numbers are the same."""
    params = {"x": np.zeros(LARGE, np.float32)}
    receipts, found, used = [], [], []
    for near in (True, False):
        with connect(hosted.target, shared_memory=near) as one, connect(hosted.target, shared_memory=near) as two:
            before = hosted.used_bytes
            workers = Shared(quorum=2, clip=clip, deadline_seconds=300)
            options: dict[str, Any] = {"workers": workers, "non_finite": policy, "clip_norm": clip_norm}
            first = one.create_run(fresh("copy"), params, AMSGrad(lr=0.01), worker_id="a", **options)
            runs = [first, two.attach(first.name, worker_id="b")]
            attached = hosted.used_bytes
            for seed in (0, 2):
                gradients = [
                    {"x": np.random.default_rng(seed + rank).standard_normal(LARGE, np.float32)} for rank in (0, 1)
                ]
                futures = [aside.submit(run.step, values) for run, values in zip(runs, gradients, strict=True)]
                receipts.append([future.result(60).gradient_norm for future in futures])
            used.append(hosted.used_bytes - attached)
            found.append([run.params["x"].tobytes() for run in runs])
            for run in runs:
                run.close()
            hosted.delete(f"runs/{first.name}")
            eventually(lambda before=before: hosted.used_bytes <= before, "memory given back")  # type: ignore[misc]
    assert used[1] >= 2 * 4 * LARGE
    assert (used[0] >= 2 * 4 * LARGE) is copied
    assert found[0] == found[1]
    assert receipts[:2] == receipts[2:]


def test_bytes_that_change_before_they_are_combined(hosted: HostedServer, stub: Stub, honest: Server) -> None:
    """They are what that worker has contributed; the other one's share and everybody else's runs are as they were."""
    bystander = honest.create_run(fresh("other"), {"w": np.zeros(9, np.float32)}, AMSGrad(lr=0.01))
    run = shared_run(honest)
    liar = Liar(stub, run)
    liar.contribute(hosted, run)
    liar.write(0, LIE)
    receipt = run.step({"w": OTHER})
    assert (receipt.applied, receipt.contributors) == (True, 2)
    assert run.params["w"].tobytes() == run.read()["w"].tobytes() == plain_round(honest, LIE, OTHER)
    assert liar.answer()[1].contribution.kind == train_pb2.Outcome.KIND_ACCEPTED
    liar.end()
    bystander.step({"w": np.ones(9, np.float32)})
    assert np.isfinite(bystander.params["w"]).all()


def test_bytes_that_change_after_they_were_combined(
    hosted: HostedServer, device: GatedDevice, stub: Stub, honest: Server, aside: ThreadPoolExecutor
) -> None:
    run = shared_run(honest)
    liar = Liar(stub, run)
    liar.contribute(hosted, run)
    with device.hold("commit") as gate:
        step: Future[Receipt] = aside.submit(run.step, {"w": OTHER})
        gate.wait_entered()
        liar.write(0, NAN)
        gate.release()
        assert step.result(60).applied
    assert run.params["w"].tobytes() == plain_round(honest, GRADIENT, OTHER)
    liar.end()


def test_one_alone_is_copied_before_it_is_looked_at(
    hosted: HostedServer, device: GatedDevice, stub: Stub, honest: Server
) -> None:
    """It is the combined gradient: what the norm was of is what is applied."""
    run = shared_run(honest, Shared(quorum=1, stale="reject"))
    liar = Liar(stub, run)
    with device.hold("commit") as gate:
        liar.write(0, GRADIENT)
        contribution = train_pb2.Contribution(base_epoch=liar.attached.epoch)
        liar.gradients(0, BYTES, header=train_pb2.BlockHeader(steps=1, contribution=contribution))
        gate.wait_entered()
        liar.write(0, NAN)
        gate.release()
    _, receipt = liar.answer()
    assert receipt.gradient_norm == pytest.approx(float(np.linalg.norm(GRADIENT.astype(np.float64))))
    assert run.read()["w"].tobytes() == plain_round(honest, GRADIENT)
    liar.end()


def test_what_is_not_finite_any_more_drops_its_round_and_nothing_else(
    hosted: HostedServer, stub: Stub, honest: Server
) -> None:
    run = shared_run(honest)
    liar = Liar(stub, run)
    liar.contribute(hosted, run)
    liar.write(0, NAN)
    receipt = run.step({"w": OTHER})
    assert (receipt.outcome, receipt.reason) == ("dropped", "ROUND_NOT_FINITE")
    assert not run.params["w"].any()
    assert liar.answer()[1].contribution.reason == "ROUND_NOT_FINITE"
    liar.put(leave=train_pb2.Leave())
    liar.end()
    with honest.attach(run.name, worker_id="c") as third, ThreadPoolExecutor(1) as aside:
        other = aside.submit(third.step, {"w": GRADIENT})
        assert run.step({"w": OTHER}).applied
        assert other.result(60).applied
    assert run.params["w"].tobytes() == plain_round(honest, GRADIENT, OTHER)


def test_the_journal_has_what_was_applied(tmp_path: Path) -> None:
    """Whatever the bytes are by then: a server that reads the journal comes to the same parameters."""
    with (
        HostedServer(data_dir=str(tmp_path)) as hosted,
        connect(hosted.target, shared_memory=False) as honest,
        channel_to(hosted.target) as channel,
    ):
        run = shared_run(honest, durability="JOURNAL")
        liar = Liar(service_pb2_grpc.OptimizerServiceStub(channel), run)
        liar.contribute(hosted, run)
        liar.write(0, LIE)
        run.step({"w": OTHER})
        liar.write(0, NAN)
        digest, found = run.digest(), run.read()["w"].tobytes()
        liar.answer()
        liar.end()
    with HostedServer(data_dir=str(tmp_path)) as again, connect(again.target) as connection:
        run = connection.attach(run.name, worker_id="b", takeover=True)
        assert run.digest() == digest
        assert run.read()["w"].tobytes() == found


@pytest.mark.parametrize("resumes", [True, False])
def test_a_contribution_outlives_its_stream(hosted: HostedServer, stub: Stub, honest: Server, resumes: bool) -> None:
    """Its memory does too; it goes with the contribution, whether that is combined or withdrawn."""
    run = shared_run(honest)
    liar = Liar(stub, run)
    attached = hosted.used_bytes
    liar.contribute(hosted, run)
    liar.die()
    rounds: Any = hosted.run_of(run.name).shared_workers
    eventually(lambda: hosted.call(lambda: rounds.leases.members.get("a").hold is None), "the stream ended")
    assert hosted.used_bytes == attached
    again = Liar(stub, run, resumes=int(resumes), confirm=False)
    assert again.attached.waiting_sequence == int(resumes)
    if not resumes:
        assert hosted.used_bytes == attached  # the old one has gone, and there is a new one
        again.end()
        return
    assert hosted.used_bytes > attached
    run.step({"w": OTHER})
    assert again.answer()[1].contribution.kind == train_pb2.Outcome.KIND_ACCEPTED
    assert run.params["w"].tobytes() == plain_round(honest, GRADIENT, OTHER)
    again.end()


def test_a_slice_that_lies_elsewhere_has_all_copied(hosted: HostedServer, stub: Stub, honest: Server) -> None:
    run = shared_run(honest)
    liar = Liar(stub, run)
    half = SIZE // 2
    contribution = train_pb2.Contribution(base_epoch=liar.attached.epoch)
    liar.write(0, GRADIENT[:half])
    header = train_pb2.BlockHeader(steps=1, contribution=contribution)
    liar.gradients(0, 4 * half, last=False, header=header)
    liar.write(4 * SIZE, GRADIENT[half:])
    liar.gradients(4 * SIZE, 4 * (SIZE - half), offset=half, header=None)
    rounds: Any = hosted.run_of(run.name).shared_workers
    eventually(lambda: hosted.call(lambda: rounds.waiting("a") is not None), "a contribution waits")
    liar.write(0, NAN)
    assert run.step({"w": OTHER}).applied
    assert run.params["w"].tobytes() == plain_round(honest, GRADIENT, OTHER)
    liar.answer()
    liar.end()


@pytest.mark.parametrize("element", [0, LARGE // 2, LARGE - 1])
def test_one_value_that_is_not_finite_refuses_its_contribution_alone(hosted: HostedServer, element: int) -> None:
    """In whichever slice it is: each is looked at when it comes."""
    gradient = np.ones(LARGE, np.float32)
    gradient[element] = np.inf
    with connect(hosted.target) as near:
        run = near.create_run(
            fresh("inf"), {"x": np.zeros(LARGE, np.float32)}, AMSGrad(lr=0.01), workers=Shared(quorum=1), worker_id="b"
        )
        with pytest.raises(NonFiniteGradient, match=f"is inf at its element {element};"):
            run.step({"x": gradient})
        receipt = run.step({"x": np.ones(LARGE, np.float32)})
        assert receipt.step == 1
        assert receipt.gradient_norm == pytest.approx(LARGE**0.5)
        run.close()
