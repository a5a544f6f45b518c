"""Shared runs by way of the client: what each worker is told, over cuts, restarts and whatever the leader does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwire.client import (
    SGD,
    Fenced,
    GradwireError,
    LayoutMismatch,
    LeaderBusy,
    NonFiniteGradient,
    RetryPolicy,
    Run,
    RunNotFound,
    RunRolledBack,
    Server,
    Shared,
    TorchAdam,
    WorkerConflict,
    connect,
)
from gradwire.wire.lane import AVAILABLE
from tests.contract import shared_runs
from tests.contract.bare import BareClient
from tests.faults.bare import fresh_name
from tests.faults.hosted import HostedServer, InBackground, eventually
from tests.faults.proxy import Proxy
from tests.serving import ServerProcess

SIZE = 1000
PLAIN = SGD(lr=1.0)
TWO = Shared(quorum=2, deadline_seconds=20.0)
PATIENT = RetryPolicy(deadline_seconds=60.0, initial_backoff_seconds=0.02)


def filled(value: float) -> dict[str, Any]:
    return {"w": np.full(SIZE, value, np.float32)}


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedServer]:
    with HostedServer(near=True) as server:
        yield server


@pytest.fixture
def server(hosted: HostedServer) -> Iterator[Server]:
    with connect(hosted.target) as connection:
        yield connection


class Pair:
    """Two workers: ``a`` has created the run, and leads."""

    def __init__(self, server: Server, workers: Shared = TWO, optimizer: Any = PLAIN, **options: Any) -> None:
        self.name = fresh_name("shared")
        self.a = server.create_run(self.name, filled(0), optimizer, workers=workers, worker_id="a", **options)
        self.b = server.attach(self.name, worker_id="b", retry=options.get("retry"))

    def wait_until_waits(self, worker_id: str) -> None:
        eventually(
            lambda: any(worker.waiting for worker in self.b.workers() if worker.worker_id == worker_id),
            f"the contribution of {worker_id} is there",
        )


def value(run: Run) -> float:
    """What all elements are."""
    found = set(run.params["w"].tolist())
    assert len(found) == 1
    return float(found.pop())


def test_a_round_is_the_mean_by_weights_and_both_are_told_so(server: Server) -> None:
    pair = Pair(server)
    with InBackground(lambda: pair.a.step(filled(1), weight=1)) as waiting:
        pair.wait_until_waits("a")
        found = pair.b.workers()
        assert (found.waiting_for[:6], found.round, [worker.leads for worker in found]) == ("1 of 2", 1, [True, False])
        second = pair.b.step(filled(5), weight=3)
        first = waiting.result()
    assert value(pair.a) == value(pair.b) == -4.0
    assert (first.outcome, second.outcome, first.share, second.share) == ("accepted", "accepted", 0.25, 0.75)
    assert {first.round, second.round, first.step, second.step} == {1}
    assert (first.contributors, first.total_weight, first.staleness) == (2, 4.0, 0)
    shares = {worker.worker_id: (worker.accepted, worker.share) for worker in pair.b.workers()}
    assert shares == {"a": (1, 0.25), "b": (1, 0.75)}


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_encoding": "int8", "parameter_encoding": "int8"},
        {"gradient_encoding": "bfloat16", "parameter_encoding": "bfloat16"},
        {"shared_params": True},
        {"shared_memory": False, "double_buffer": True},
    ],
)
def test_every_way_of_travelling_carries_rounds(server: Server, options: dict[str, Any]) -> None:
    """All numbers here are exact in each encoding."""
    alone = Shared(quorum=1)
    run = server.create_run(fresh_name("ways"), filled(0), PLAIN, workers=alone, worker_id="a", **options)
    for step in range(1, 4):
        assert run.step(filled(1)).applied
        assert value(run) == -step
    assert float(run.read()["w"][0]) == -3.0
    run.close()


def test_gradients_sent_ahead_are_of_the_round(server: Server) -> None:
    pair = Pair(server, Shared(quorum=1))
    pair.b.close()
    gradient = filled(2)
    assert pair.a.send_ahead({"w": lambda: gradient["w"][None]})
    assert pair.a.step(gradient, ahead=["w"], weight=7).total_weight == 7.0
    assert value(pair.a) == -2.0


def test_asynchronous_workers_are_told_how_old_their_gradients_are(server: Server) -> None:
    pair = Pair(server, Shared(quorum=1, max_staleness=1, stale="reject"))
    assert pair.a.step(filled(1)).applied
    late = pair.b.step(filled(1))
    assert (late.outcome, late.staleness, value(pair.b)) == ("accepted", 1, -2.0)
    for _ in range(2):
        assert pair.b.step(filled(1)).applied
    stale = pair.a.step(filled(100))
    assert (stale.outcome, stale.reason, stale.staleness, stale.applied) == ("stale", "TOO_STALE", 3, False)
    assert value(pair.a) == -4.0, "the newest parameters came with it"
    assert pair.a.step(filled(1)).applied


def test_a_round_without_its_quorum_is_dropped_where_that_was_chosen(server: Server) -> None:
    pair = Pair(server, Shared(quorum=2, deadline_seconds=0.2, on_deadline="fail"))
    dropped = pair.a.step(filled(1))
    assert (dropped.outcome, dropped.reason, value(pair.a)) == ("dropped", "NO_QUORUM", 0.0)


def test_who_closes_is_not_waited_for(server: Server) -> None:
    pair = Pair(server, Shared(quorum="all", deadline_seconds=600.0, lease_seconds=600.0))
    with InBackground(lambda: pair.a.step(filled(1))) as waiting:
        pair.wait_until_waits("a")
        assert not waiting.done()
        pair.b.close()
        assert waiting.result().contributors == 1


def test_a_gradient_that_is_not_finite_is_refused_alone(server: Server) -> None:
    pair = Pair(server)
    with InBackground(lambda: pair.a.step(filled(1))) as waiting:
        pair.wait_until_waits("a")
        with pytest.raises(NonFiniteGradient):
            pair.b.step(filled(np.nan))
        assert pair.b.last_receipt is not None
        assert pair.b.last_receipt.outcome == "refused"
        assert pair.b.step({}).share == 0.0, "it passes"
        assert waiting.result().contributors == 2
    assert value(pair.b) == -1.0


# --- exactly once ----------------------------------------------------------------------------------------------------


def test_a_contribution_that_waits_survives_a_cut_without_a_second_upload(hosted: HostedServer) -> None:
    with Proxy(hosted.target) as proxy, connect(proxy.target) as cut, connect(hosted.target) as direct:
        pair = Pair(direct)
        pair.a.close()  # else the round would be held for it
        through = cut.attach(pair.name, worker_id="c", retry=PATIENT)
        with InBackground(lambda: through.step(filled(4))) as waiting:
            pair.wait_until_waits("c")
            before = proxy.connections
            proxy.cut()
            eventually(lambda: proxy.connections > before, "it has connected again")
            assert pair.b.step(filled(2)).contributors == 2
            receipt = waiting.result()
        assert (receipt.outcome, receipt.share, value(through)) == ("accepted", 0.5, -3.0)
        again = {worker.worker_id: worker.accepted for worker in pair.b.workers()}
        assert again == {"a": 0, "b": 1, "c": 1}
        through.close()


def test_a_server_that_stops_in_order_takes_no_contribution_with_it(tmp_path: Path) -> None:
    """Both workers wait or send; the next server gets what the first one had not applied."""
    flags = ("--data-dir", str(tmp_path / "data"))
    with ServerProcess(*flags) as first, connect(first.target) as server:
        pair = Pair(server, durability="JOURNAL", retry=PATIENT)
        with InBackground(lambda: pair.a.step(filled(1))) as waiting:
            pair.wait_until_waits("a")
            first.terminate()
            first.process.wait(30)
            with ServerProcess(*flags, listen=first.target):
                assert pair.b.step(filled(3)).applied
                assert waiting.result().applied
                assert value(pair.a) == value(pair.b) == -2.0
                assert (pair.a.last_sequence, pair.a.step_count) == (1, 1)
                pair.a.close()
                pair.b.close()


def test_a_killed_server_has_its_contributions_sent_again(tmp_path: Path) -> None:
    flags = ("--data-dir", str(tmp_path / "data"))
    with ServerProcess(*flags) as first, connect(first.target) as server:
        pair = Pair(server, Shared(quorum=1, max_staleness=5), durability="JOURNAL", retry=PATIENT)
        assert pair.a.step(filled(1)).applied
        assert pair.b.step(filled(1)).applied
        first.kill()
        with ServerProcess(*flags, listen=first.target):
            assert (pair.a.step(filled(1)).step, pair.b.step(filled(1)).step) == (3, 4)
            assert value(pair.b) == -4.0
            pair.a.close()
            pair.b.close()


def test_lost_steps_are_told_to_those_whose_they_were(tmp_path: Path) -> None:
    flags = ("--data-dir", str(tmp_path / "data"))
    with ServerProcess(*flags) as first, connect(first.target) as server:
        pair = Pair(server, Shared(quorum=1, max_staleness=5), durability="SNAPSHOT", retry=PATIENT)
        pair.a.save_snapshot()
        assert pair.a.step(filled(1)).applied
        first.kill()
        with ServerProcess(*flags, listen=first.target):
            with pytest.raises(RunRolledBack):
                pair.a.step(filled(1))
            other = pair.b.step(filled(1))
            assert (other.outcome, other.reason) == ("stale", "HISTORY_CHANGED")
            assert pair.b.step(filled(1)).applied
            pair.a.refresh()
            assert pair.a.step(filled(1)).applied
            assert value(pair.a) == -2.0
            pair.a.close()
            pair.b.close()


def test_a_restarted_process_goes_on_as_the_same_worker(server: Server) -> None:
    pair = Pair(server, Shared(quorum=1, max_staleness=5))
    pair.b.step(filled(1))
    pair.b.step(filled(1))
    kept = pair.b.last_sequence
    pair.b.close()
    for known in (None, 1, kept):
        again = server.attach(pair.name, worker_id="b", last_sequence=known)
        assert again.last_sequence >= kept
        assert again.step(filled(1)).applied
        again.close()
    assert {worker.worker_id: worker.accepted for worker in pair.a.workers()}["b"] == 5


def test_two_processes_with_one_worker_id_find_out(server: Server) -> None:
    pair = Pair(server, Shared(quorum=1, max_staleness=5))
    with connect(server.target) as another:
        double = another.attach(pair.name, worker_id="b")
        assert double.step(filled(1)).applied
        with pytest.raises(GradwireError, match="two processes use one worker_id"):
            pair.b.step(filled(1))
        with pytest.raises(WorkerConflict, match="Another process uses the same worker_id"):
            pair.b.step(filled(1))
        double.close()


# --- the leader ------------------------------------------------------------------------------------------------------


def test_the_leader_s_numbers_take_effect_with_its_contribution(server: Server) -> None:
    pair = Pair(server)
    with InBackground(lambda: pair.a.step(filled(1), lr=10.0)) as waiting:
        pair.wait_until_waits("a")
        assert pair.b.step(filled(1)).learning_rates == (10.0,)
        assert waiting.result().learning_rates == (10.0,)
    assert value(pair.b) == -10.0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda run: run.write(filled(7)), id="write"),
        pytest.param(lambda run: run.load_state_dict(run.state_dict()), id="state"),
        pytest.param(lambda run: run.roll_back(run.save_snapshot()), id="roll-back"),
    ],
)
def test_what_the_leader_changes_drops_the_open_round_and_goes_on_with_all(
    server: Server, change: Callable[[Run], object]
) -> None:
    pair = Pair(server)
    with InBackground(lambda: pair.b.step(filled(100))) as waiting:
        pair.wait_until_waits("b")
        change(pair.a)
        with pytest.raises(Fenced) as caught:
            waiting.result()
    assert (caught.value.applied, pair.b.stale) == (False, True)
    told = pair.b.step(filled(100))
    assert (told.outcome, told.reason, pair.b.stale) == ("stale", "HISTORY_CHANGED", False)
    assert value(pair.b) == value(pair.a)
    before = value(pair.a)
    with InBackground(lambda: pair.b.step(filled(1))) as waiting:
        assert pair.a.step(filled(3)).contributors == 2
        assert waiting.result().applied
    assert value(pair.a) == value(pair.b) == before - 2.0


def test_a_partial_write_takes_what_others_have_done_to_the_rest(server: Server) -> None:
    workers = Shared(quorum=1, max_staleness=5)
    name = fresh_name("partial")
    params = {"w": np.zeros(3, np.float32), "v": np.zeros(3, np.float32)}
    a = server.create_run(name, params, PLAIN, workers=workers, worker_id="a")
    b = server.attach(name, worker_id="b")
    b.step({"w": np.ones(3, np.float32)})
    a.write({"v": np.full(3, 5.0, np.float32)}, partial=True)
    assert (a.params["w"].tolist(), a.params["v"].tolist()) == ([-1.0] * 3, [5.0] * 3)
    receipt = a.step({"v": np.ones(3, np.float32)})
    assert (receipt.outcome, receipt.staleness) == ("accepted", 0)


def test_who_closes_without_a_stream_is_not_waited_for_either(server: Server) -> None:
    """The leader's write has ended it."""
    pair = Pair(server, Shared(deadline_seconds=60.0, lease_seconds=60.0))
    pair.a.write(filled(1))
    pair.b.close()
    assert pair.a.step(filled(1)).contributors == 1


def test_a_lead_that_nobody_asked_for_is_no_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    pair = Pair(server)
    assert (pair.a.leads, pair.b.leads) == (True, False)
    with pytest.raises(LeaderBusy):
        server.attach(pair.name, worker_id="c", leads=True)


def test_a_delta_of_a_step_whose_outcome_is_not_known_is_not_sent_twice(server: Server) -> None:
    pair = Pair(server, shared_memory=False)  # nor a lane: answers come through a queue, and so can Ctrl-C
    working = InBackground(lambda: pair.a.contribute_delta(filled(1)))
    pair.wait_until_waits("a")
    stream = pair.a._attachment.stream
    assert stream is not None
    stream._grpc._answers.put(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        working.result()
    with pytest.raises(ValueError, match="might count twice"):
        pair.a.contribute_delta(filled(2))
    pair.a.refresh()
    again = InBackground(lambda: pair.a.contribute_delta(filled(1)))
    pair.wait_until_waits("a")
    pair.b.contribute_delta(filled(3))
    assert again.result().outcome == "accepted"
    assert value(pair.a) == 2.0


def test_the_lead_can_be_taken(server: Server) -> None:
    pair = Pair(server, Shared(quorum=1))
    with pytest.raises(LeaderBusy, match="worker 'a' leads"):
        server.attach(pair.name, worker_id="c", leads=True)
    with server.attach(pair.name, worker_id="c", leads=True, takeover=True) as new:
        assert new.leads
        with pytest.raises(LeaderBusy):
            pair.a.write(filled(1))
        new.write(filled(2))


# --- the run as a whole ----------------------------------------------------------------------------------------------


def test_federated_averaging_is_one_line(server: Server) -> None:
    """FedAvg: with lr 1 the run is the mean of where the workers went, by their numbers of examples."""
    pair = Pair(server)
    with InBackground(lambda: pair.a.contribute_delta(filled(4), weight=1)) as waiting:
        pair.b.contribute_delta(filled(8), weight=3)
        assert waiting.result().applied
    assert value(pair.a) == value(pair.b) == 7.0


def test_a_delta_from_before_a_write_is_told_so(server: Server) -> None:
    pair = Pair(server, Shared(quorum=1))
    pair.a.write(filled(3))
    with pytest.raises(Fenced):
        pair.b.contribute_delta(filled(1))
    assert pair.b.stale
    assert pair.b.contribute_delta(filled(1)).reason == "HISTORY_CHANGED"
    assert value(pair.b) == 3.0


def test_a_run_is_resumed_only_as_what_it_is(server: Server) -> None:
    pair = Pair(server)
    resumed = server.create_run(
        pair.name, filled(9), PLAIN, workers=Shared(quorum=1), on_existing="resume", worker_id="c"
    )
    assert (resumed.leads, value(resumed), resumed.describe().spec.shared.quorum) == (False, 0.0, 2)
    with pytest.raises(LayoutMismatch, match="a run of many workers; it can only be resumed with workers="):
        server.create_run(pair.name, filled(9), PLAIN, on_existing="resume")
    alone = fresh_name("alone")
    server.create_run(alone, filled(0), PLAIN).close()
    with pytest.raises(LayoutMismatch, match="a run of one worker; it can only be resumed without workers="):
        server.create_run(alone, filled(0), PLAIN, on_existing="resume", workers=TWO)


def test_a_fork_is_shared_too_and_its_maker_leads(server: Server) -> None:
    pair = Pair(server, Shared(quorum=1), TorchAdam(lr=0.1))
    pair.b.close()
    pair.a.step(filled(1))
    fork = pair.a.fork(fresh_name("fork"), worker_id="f", lr=0.2)
    assert (fork.shared, fork.leads, fork.digest()) == (True, True, pair.a.digest())
    assert fork.step(filled(1)).learning_rates == (0.2,)


def test_what_is_read_and_copied_while_a_round_is_open_is_the_last_closed_one(server: Server) -> None:
    pair = Pair(server)
    with InBackground(lambda: pair.a.step(filled(2))) as waiting:
        pair.b.step(filled(4))
        assert waiting.result().applied
    closed = pair.b.digest()
    with InBackground(lambda: pair.a.step(filled(100))) as waiting:
        pair.wait_until_waits("a")
        fork = pair.b.fork(fresh_name("fork"), worker_id="f")
        kept = pair.b.save_snapshot("while a round is open")
        assert (pair.b.digest(), pair.b.read()["w"][0], value(fork), kept.step) == (closed, -3.0, -3.0, 1)
        pair.b.step(filled(0))
        assert waiting.result().applied
    assert (value(pair.a), fork.digest()) == (-53.0, closed)


def test_an_evaluator_reads_without_a_place(server: Server) -> None:
    """A round of all waits for whoever is attached: who only reads must not be one of them."""
    pair = Pair(server, Shared(deadline_seconds=300))
    with InBackground(lambda: pair.a.step(filled(2))) as waiting:
        pair.wait_until_waits("a")
        read = server.read_params(pair.name)
        assert (read.step, read.params["w"].tolist()) == (0, [0.0] * SIZE)
        read.params["w"][:] = 9.0
        pair.b.step(filled(4))
        assert waiting.result().contributors == 2
    again = server.read_params(pair.name)
    assert (again.step, again.params["w"].tolist()) == (1, [-3.0] * SIZE)
    assert [worker.worker_id for worker in pair.a.workers()] == ["a", "b"]
    with pytest.raises(RunNotFound):
        server.read_params("nothing")


def test_mixing_runs_of_one_worker_and_shared_calls_is_refused_by_name(server: Server) -> None:
    alone = server.create_run(fresh_name("alone"), filled(0), PLAIN)
    with pytest.raises(ValueError, match=r"^weight is 2, but this run has one worker"):
        alone.step(filled(1), weight=2)
    receipt = alone.step(filled(1))
    assert (receipt.applied, receipt.outcome, receipt.share, receipt.contributors) == (True, "accepted", 1.0, 1)
    assert [worker.worker_id for worker in alone.workers()] == [alone.worker_id]
    with pytest.raises(TypeError, match=r"^workers is 3; expected Shared"):
        server.create_run(fresh_name("bad"), filled(0), PLAIN, workers=3)  # type: ignore[arg-type]


def test_what_waits_is_answered_before_a_stream_could_move_to_a_lane(hosted: HostedServer) -> None:
    with BareClient(hosted.target) as bare:
        shared = shared_runs.Shared(bare, quorum=2, deadline_seconds=300)
        first = shared.attach("a", lane=True)
        assert first.stream.attached.HasField("lane") == AVAILABLE
        first.send([1.0, 1.0])
        shared.until_waiting("a")
        again = shared.attach("a", lane=True, resumes=1).stream.attached
        assert (again.waiting_sequence, again.HasField("lane")) == (1, False)
