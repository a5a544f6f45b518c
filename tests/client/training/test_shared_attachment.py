"""What a worker of a shared run makes of what the server says when it attaches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradwire.client import LeaderBusy, RunRolledBack, WorkerConflict, WorkerForgotten
from gradwire.client.run import Run
from gradwire.client.workers.rank import RANK_VARIABLES, default_worker_id, leads_by_default
from gradwire.client.workers.rank import rank as known_rank
from tests.client.training.scripted_rounds import Kind, Requests, ScriptedRounds, answer, attached
from tests.client.training.test_shared_delivery import answers, cut_while_it_waits

ONES = {"w": np.ones(2, np.float32)}
STALE = Kind.KIND_STALE


def first_steps(*kinds: int) -> Any:
    """A stream of so many answered contributions, which then breaks."""

    def call(requests: Requests) -> Any:
        yield attached()
        for number, kind in enumerate(kinds, 1):
            requests.block()
            yield answer(number, 7.0, kind)
        requests.block()
        requests.cut()

    return call


def stepped(run: Run, times: int) -> None:
    for _ in range(times):
        run.step(ONES)


def test_numbers_go_on_above_those_that_only_the_client_remembers() -> None:
    """A server that has been started anew knows of accepted contributions alone."""
    broken = first_steps(Kind.KIND_ACCEPTED, STALE)
    again = answers(answer(3, 8.0, step=2), last_sequence=1, last_accepted_sequence=1)
    with ScriptedRounds(broken, again) as server, server.attach() as run:
        stepped(run, 2)
        assert run.step(ONES).applied
        assert run.last_sequence == 3
    assert [attach.resumes for attach in server.attaches] == [0, 3]


def test_a_lost_accepted_contribution_is_a_run_that_was_rolled_back() -> None:
    broken = first_steps(Kind.KIND_ACCEPTED, Kind.KIND_ACCEPTED)
    lost = answers(last_sequence=1, last_accepted_sequence=1, step=1, epoch=2**32)
    goes_on = answers(answer(3, 8.0, epoch=2**32), last_sequence=1, last_accepted_sequence=1, epoch=2**32)
    with ScriptedRounds(broken, lost, goes_on) as server, server.attach() as run:
        stepped(run, 2)
        with pytest.raises(RunRolledBack, match="it has accepted contribution 2") as caught:
            run.step(ONES)
        assert caught.value.metadata == {"last_sequence": "1", "acknowledged_sequence": "2"}
        assert run.stale
        assert run.step(ONES).applied, "a caller who decides to go on can"
    assert server.blocks[-1].sequence == 3


def test_a_lost_answer_that_was_not_accepted_is_none() -> None:
    with ScriptedRounds(first_steps(STALE), answers(answer(2, 8.0))) as server, server.attach() as run:
        stepped(run, 1)
        assert run.step(ONES).applied


def test_a_worker_that_was_forgotten_is_told_so() -> None:
    forgotten = answers(perhaps_forgotten=True, step=9)
    with ScriptedRounds(first_steps(Kind.KIND_ACCEPTED), forgotten) as server, server.attach() as run:
        stepped(run, 1)
        with pytest.raises(WorkerForgotten, match="since it accepted contribution 1") as caught:
            run.step(ONES)
        assert caught.value.applied is None, "one was on its way"


@pytest.mark.parametrize(
    "fields", [{"last_sequence": 2, "last_accepted_sequence": 2}, {"waiting_sequence": 2, "last_sequence": 0}]
)
def test_contributions_that_this_client_never_sent_are_somebody_else_s(fields: dict[str, int]) -> None:
    conflict = pytest.raises(WorkerConflict, match="Another process uses the same worker_id")
    with ScriptedRounds(cut_while_it_waits, answers(**fields)) as server, server.attach() as run, conflict:
        run.step(ONES)


def test_an_epoch_that_the_server_has_lost_is_a_run_that_was_rolled_back() -> None:
    lost = pytest.raises(RunRolledBack, match="has epoch 0 of the run, though 1 was acknowledged")
    with ScriptedRounds(cut_while_it_waits, answers(epoch=0)) as server, server.attach() as run, lost:
        run.step(ONES)


def test_parameters_are_not_stale_because_others_have_stepped() -> None:
    far = answers(answer(1, 7.0, STALE), step=1000)
    with ScriptedRounds(cut_while_it_waits, far) as server, server.attach() as run:
        assert run.step(ONES).outcome == "stale"
        assert (server.reads, run.refreshes) == (0, 0)


def test_a_later_epoch_makes_them_stale() -> None:
    with ScriptedRounds(first_steps(STALE), answers(epoch=3)) as server, server.attach() as run:
        stepped(run, 1)
        run._attachment.drop()
        run.hold()
        assert run.stale


@pytest.mark.parametrize(("answered", "accepted", "expected"), [(9, 9, 10), (9, 4, 10), (2, 2, 6), (0, 0, 6)])
def test_a_restarted_process_numbers_above_all_that_were_used(answered: int, accepted: int, expected: int) -> None:
    script = answers(answer(expected, 7.0), last_sequence=answered, last_accepted_sequence=accepted)
    with ScriptedRounds(script) as server, server.attach(last_sequence=5) as run:
        assert run.last_sequence == expected - 1
        assert run.step(ONES).applied
    assert server.attaches[0].resumes == 0, "nothing of an earlier process is taken up"
    assert server.blocks[0].sequence == expected


def test_an_interrupted_contribution_is_withdrawn_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where its round had closed before, its number is used up."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    again = answers(answer(2, 8.0, step=2), last_sequence=1, last_accepted_sequence=1)
    with ScriptedRounds(cut_while_it_waits, again) as server, server.attach() as run:
        with monkeypatch.context() as patch:
            patch.setattr("gradwire.client.training.delivery.Delivery._waiting", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run.step(ONES)
        assert run.stale
        assert run.step(ONES).applied
    assert [attach.resumes for attach in server.attaches] == [0, 0]
    assert [block.sequence for block in server.blocks] == [1, 2]
    assert server.blocks[1].header.contribution.base_step == 0


CHANGES: dict[str, Callable[[Run], object]] = {
    "a change of hyperparameters": lambda run: run.step(ONES, lr=0.5),
    "a change of hyperparameters ": lambda run: run.step(ONES, overrides={0: {"eps": 1e-6}}),
    "a write of parameters": lambda run: run.write(ONES),
    "a change of the optimizer state": lambda run: run.load_state_dict({}),
    "a roll-back": lambda run: run.roll_back(1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_only_the_leader_changes_what_holds_for_all(what: str) -> None:
    with ScriptedRounds(answers(leads=False)) as server, server.attach(leads=False) as run:
        assert (server.attaches[0].leads, run.leads) == (False, False)
        with pytest.raises(LeaderBusy, match=f"^{what.strip()} is for the worker that leads run 'x', and rank-0 "):
            CHANGES[what](run)
        assert server.blocks == []


@pytest.mark.parametrize(
    ("rank", "created", "leads"), [("0", False, True), ("1", True, False), (None, True, True), (None, False, False)]
)
def test_rank_0_leads_else_who_has_created_the_run(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, created: bool, leads: bool
) -> None:
    for variable in RANK_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert leads_by_default(created=created, goes_on=False) is leads
    assert (default_worker_id(shared=True) == f"rank-{rank}") is (rank is not None)
    assert default_worker_id(shared=False) != default_worker_id(shared=False)


@pytest.mark.parametrize("variable", ["RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"])
def test_ranks_are_known_from_whoever_has_started_the_processes(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for other in RANK_VARIABLES:
        monkeypatch.setenv(other, "none")
    assert known_rank() is None
    monkeypatch.setenv(variable, " 3 ")
    assert known_rank() == 3


def test_a_rank_is_one_worker_of_a_run_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of one process have one rank; the second would end the first one's stream."""
    monkeypatch.setenv("RANK", "3")
    with ScriptedRounds(answers(), answers(), answers(), answers()) as server:
        first = server.attach(worker_id=None)
        with pytest.raises(ValueError, match=r"is worker 'rank-3' of runs/x already, .* a worker_id for each"):
            server.attach(worker_id=None)
        server.attach(worker_id="thread-1").close()
        first.close()
        with server.attach(worker_id=None) as again:
            assert again.worker_id == "rank-3"
        del again  # nobody refers to it any more, closed or not
        assert server.attach(worker_id=None).worker_id == "rank-3"
    assert [attach.worker_id for attach in server.attaches] == ["rank-3", "thread-1", "rank-3", "rank-3"]


def test_of_a_run_that_goes_on_whoever_comes_first_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in RANK_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert leads_by_default(created=False, goes_on=True)
    monkeypatch.setenv("RANK", "1")
    assert not leads_by_default(created=False, goes_on=True)
