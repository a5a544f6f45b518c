"""Shared runs, by the contract alone: rounds, their sums, and what each worker is told."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gradwire.v1 import run_pb2, service_pb2, train_pb2
from tests.contract.bare import BareClient, Refusal, pack, refused, whole
from tests.contract.shared_runs import ACCEPTED, DROPPED, REFUSED, STALE, Shared, sgd
from tests.faults.hosted import eventually
from tests.serving import ServerProcess


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with ServerProcess() as server:
        yield server.target


@pytest.fixture
def bare(target: str) -> Iterator[BareClient]:
    with BareClient(target) as client:
        yield client


def test_a_round_is_the_weighted_mean_of_its_contributions(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2)
    a, b = shared.attach("a"), shared.attach("b")
    a.send([1.0, 2.0], weight=1.0)
    b.send([4.0, -2.0], weight=2.0)
    first, second = a.answer(), b.answer()
    assert (first.contribution.kind, second.contribution.kind) == (ACCEPTED, ACCEPTED)
    assert (first.contribution.share, second.contribution.share) == (1 / 3, 2 / 3)
    assert {first.contribution.round, second.contribution.round, first.step, second.step} == {1}
    assert (first.contribution.contributors, first.contribution.total_weight) == (2, 3.0)
    assert a.params == b.params == shared.read()
    assert a.params == pytest.approx([-3.0, 2 / 3])


def test_who_came_first_does_not_matter_bit_for_bit(bare: BareClient) -> None:
    generator = np.random.default_rng(1)
    gradients = generator.standard_normal((3, 5)).astype(np.float32) * np.array([[1e8], [1.0], [1e-8]], np.float32)
    found = set()
    for order in itertools.permutations(range(3)):
        shared = Shared(bare, [0.0] * 5, quorum=3)
        workers = [shared.attach(f"rank-{rank}") for rank in range(3)]
        for rank in order:
            workers[rank].send(gradients[rank].tolist(), weight=0.1 + rank)
        assert [worker.answer().contribution.kind for worker in workers] == [ACCEPTED] * 3
        found.add(pack(workers[0].params))
    assert len(found) == 1


def test_tensors_are_averaged_over_those_that_have_them(bare: BareClient) -> None:
    shared = Shared(bare, [0.0] * 3, spec={"groups": [sgd(a=[1], b=[1], c=[1])]}, quorum=2)
    first, second = shared.attach("1"), shared.attach("2")
    first.send([6.0], absent_tensors=[1, 2])
    second.send([2.0, 8.0], absent_tensors=[2])
    first.answer(), second.answer()
    assert first.params == second.params == [-4.0, -8.0, 0.0]
    state = bare.call("ReadState", service_pb2.ReadStateRequest(name=f"runs/{shared.name}"))
    assert list(state[0].header.tensor_steps) == [1, 1, 0]


def test_one_that_is_too_old_is_told_so_and_gets_the_newest(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1, stale=run_pb2.SharedRun.STALE_REJECT)
    fast, slow = shared.attach("fast"), shared.attach("slow")
    assert fast.step_alone([1.0, 1.0]).contribution.kind == ACCEPTED
    receipt = slow.step_alone([100.0, 100.0])
    assert (receipt.contribution.kind, receipt.contribution.reason) == (STALE, "TOO_STALE")
    assert (receipt.contribution.staleness, receipt.step) == (1, 1)
    assert slow.params == [-1.0, -1.0]
    assert slow.step_alone([1.0, 1.0]).contribution.kind == ACCEPTED
    assert (slow.sequence, slow.params) == (2, [-2.0, -2.0])


def test_a_repeat_is_answered_as_it_was(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1, stale=run_pb2.SharedRun.STALE_REJECT)
    fast, slow = shared.attach("fast"), shared.attach("slow")
    fast.step_alone([1.0, 1.0])
    told = slow.step_alone([5.0, 5.0])
    slow.stream.call.cancel()
    slow = shared.attach("slow", resumes=1)
    assert (slow.sequence, slow.stream.attached.last_accepted_sequence) == (1, 0)
    slow.stream.send(train_pb2.Gradients(sequence=1, last=True))
    again = slow.answer()
    assert again.repeated
    assert again.contribution == told.contribution
    assert slow.params == shared.read()


def test_what_waits_in_a_round_is_resumed_without_a_second_upload(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, deadline_seconds=300)
    a = shared.attach("a")
    a.send([2.0, 2.0])
    shared.until_waiting("a")
    a.stream.call.cancel()
    a = shared.attach("a", resumes=1)
    assert a.stream.attached.waiting_sequence == 1
    b = shared.attach("b")
    b.send([4.0, 4.0])
    assert a.answer().contribution.contributors == b.answer().contribution.contributors == 2
    assert shared.read() == [-3.0, -3.0]


def test_attaching_anew_withdraws_what_waits(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, deadline_seconds=300)
    a = shared.attach("a")
    a.send([2.0, 2.0])
    shared.until_waiting("a")
    a.stream.call.cancel()
    a = shared.attach("a")
    assert a.stream.attached.waiting_sequence == 0
    a.send([10.0, 10.0])
    b = shared.attach("b")
    b.send([4.0, 4.0])
    assert a.answer().contribution.contributors == b.answer().contribution.contributors == 2
    assert shared.read() == [-7.0, -7.0]


def test_a_round_that_misses_its_quorum_is_dropped_and_all_are_told(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, deadline_seconds=0.05, on_deadline=run_pb2.SharedRun.ON_DEADLINE_FAIL)
    a = shared.attach("a")
    receipt = a.step_alone([1.0, 1.0])
    assert (receipt.contribution.kind, receipt.contribution.reason) == (DROPPED, "NO_QUORUM")
    assert (receipt.step, a.params) == (0, [0.0, 0.0])


def test_a_round_closes_at_its_deadline_with_at_least_so_many(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, deadline_seconds=0.05)
    receipt = shared.attach("a").step_alone([1.0, 1.0])
    assert (receipt.contribution.kind, receipt.contribution.reason, receipt.step) == (ACCEPTED, "DEADLINE", 1)


def test_a_gradient_that_is_not_finite_is_refused_alone(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2)
    a, b = shared.attach("a"), shared.attach("b")
    receipt = a.step_alone([float("nan"), 1.0])
    assert (receipt.contribution.kind, receipt.contribution.reason) == (REFUSED, "NON_FINITE_GRADIENT")
    a.send([2.0, 2.0])
    b.send([4.0, 4.0])
    assert a.answer().contribution.kind == b.answer().contribution.kind == ACCEPTED


def test_one_that_is_skipped_counts_for_the_quorum_and_adds_nothing(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, spec={"non_finite_policy": run_pb2.NON_FINITE_POLICY_SKIP})
    a, b = shared.attach("a"), shared.attach("b")
    a.send([float("inf"), 1.0])
    b.send([4.0, 4.0])
    skipped, counted = a.answer(), b.answer()
    assert (skipped.contribution.kind, skipped.contribution.share, list(skipped.skipped_steps)) == (ACCEPTED, 0.0, [0])
    assert (counted.contribution.share, list(counted.skipped_steps)) == (1.0, [])
    assert b.params == [-4.0, -4.0]


def test_a_sum_that_overflows_drops_the_round(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, combine=run_pb2.SharedRun.COMBINE_SUM)
    a, b = shared.attach("a"), shared.attach("b")
    a.send([3e38, 1.0])
    b.send([3e38, 1.0])
    for worker in (a, b):
        receipt = worker.answer()
        assert (receipt.contribution.kind, receipt.contribution.reason) == (DROPPED, "ROUND_NOT_FINITE")
    assert (shared.read(), a.step) == ([0.0, 0.0], 0)


def test_a_pass_is_accepted_and_changes_nothing(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2)
    a, b = shared.attach("a"), shared.attach("b")
    a.send([], absent_tensors=[0])
    b.send([4.0, 4.0])
    assert (a.answer().contribution.share, b.answer().contribution.share) == (0.0, 1.0)
    assert b.params == [-4.0, -4.0]
    a.send([], absent_tensors=[0])
    b.send([], absent_tensors=[0])
    assert (a.answer().step, b.answer().step, a.params) == (2, 2, [-4.0, -4.0])


def test_a_write_drops_the_open_round_and_is_history(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, deadline_seconds=300)
    a = shared.attach("a")
    a.send([1.0, 1.0])
    shared.until_waiting("a")
    bare.write(shared.name, [run_pb2.Slice(data=pack([5.0, 5.0]))])
    refused("FENCED", lambda: list(a.stream.answer()))
    b = shared.attach("b")
    old = b.step_alone([1.0, 1.0], base={"base_epoch": 0})
    assert (old.contribution.kind, old.contribution.reason, b.params) == (STALE, "HISTORY_CHANGED", [5.0, 5.0])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"weight": 0.0}, "PROTOCOL_VIOLATION"),
        ({"weight": -1.0}, "PROTOCOL_VIOLATION"),
        ({"weight": float("nan")}, "PROTOCOL_VIOLATION"),
        ({"weight": float("inf")}, "PROTOCOL_VIOLATION"),
        ({"weight": 1.1e100}, "PROTOCOL_VIOLATION"),
        ({"base": {"base_step": 1}}, "PROTOCOL_VIOLATION"),
        ({"steps": 2}, "PROTOCOL_VIOLATION"),
        ({"steps": 2, "deferred": True}, "PROTOCOL_VIOLATION"),
        ({"returns": train_pb2.RETURNS_NONE}, "PROTOCOL_VIOLATION"),
        ({"returns": train_pb2.RETURNS_TRAJECTORY}, "PROTOCOL_VIOLATION"),
        ({"overrides": [run_pb2.Override(group=0, lr=0.5)]}, "LEADER_BUSY"),
    ],
    ids=str,
)
def test_a_malformed_contribution_is_refused(bare: BareClient, wrong: dict[str, Any], reason: str) -> None:
    shared = Shared(bare, quorum=1)
    worker = shared.attach("a")
    worker.send([1.0, 1.0], **wrong)
    refused(reason, worker.answer)
    assert shared.read() == [0.0, 0.0]


def test_blocks_and_contributions_do_not_mix(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1)
    stream = shared.attach("a").stream
    stream.send(whole(1, [1.0, 1.0]))
    assert "shared by many workers" in str(refused("PROTOCOL_VIOLATION", lambda: list(stream.answer())))
    bare.create("rounds-single", [sgd(w=[2])], [0.0, 0.0])
    alone = bare.attach("rounds-single")
    alone.send(whole(1, [1.0, 1.0], contribution=train_pb2.Contribution()))
    assert "one worker at a time" in str(refused("PROTOCOL_VIOLATION", lambda: list(alone.answer())))


def test_an_old_client_is_refused_by_name(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1)
    assert "SHARED_RUN" in str(refused("CLIENT_TOO_OLD", lambda: bare.attach(shared.name)))


def test_one_leads(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1, max_staleness=5)
    leader = shared.attach("a", leads=True)
    assert leader.stream.attached.leads
    refused("LEADER_BUSY", lambda: shared.attach("b", leads=True))
    leader.step_alone([1.0, 1.0], overrides=[run_pb2.Override(group=0, lr=0.5)])
    other = shared.attach("b")
    assert not other.stream.attached.leads
    assert list(other.step_alone([1.0, 1.0]).learning_rates) == [0.5]
    leader.leave()
    assert shared.attach("b", leads=True).stream.attached.leads


def test_only_the_leader_and_operators_change_values(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1)
    shared.attach("a", leads=True)
    values = [run_pb2.Slice(data=pack([5.0, 5.0]))]
    refused("LEADER_BUSY", lambda: bare.write(shared.name, values, worker_id="b"))
    state = service_pb2.WriteStateHeader(
        name=f"runs/{shared.name}", state=service_pb2.StateHeader(step=3, tensor_steps=[3]), worker_id="b"
    )
    request = service_pb2.WriteStateRequest(header=state)
    refused("LEADER_BUSY", lambda: bare.call("WriteState", iter([request])))
    back = service_pb2.RollBackRequest(name=f"runs/{shared.name}", snapshot_id=1, worker_id="b")
    refused("LEADER_BUSY", lambda: bare.call("RollBack", back))
    assert shared.read() == [0.0, 0.0]
    assert bare.write(shared.name, values, worker_id="a").epoch == 1
    assert bare.write(shared.name, values).epoch == 2


def test_who_takes_the_lead_over_ends_the_old_leaders_stream_and_changes(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, deadline_seconds=300)
    old = shared.attach("a", leads=True)
    old.send([1.0, 1.0], overrides=[run_pb2.Override(group=0, lr=0.125)])
    shared.until_waiting("a")
    new = shared.attach("b", leads=True, takeover=True)
    assert "has taken over the lead" in str(refused("FENCED", old.answer))
    new.send([1.0, 1.0], overrides=[run_pb2.Override(group=0, lr=0.5)])
    again = shared.attach("a")
    again.sequence = 1
    again.send([1.0, 1.0])
    assert [list(worker.answer().learning_rates) for worker in (again, new)] == [[0.5], [0.5]]


def test_who_leads_after_a_lease_has_ended_is_the_only_one_whose_changes_count(bare: BareClient) -> None:
    """What the first leader had changed waits in the open round still; both cannot be in force."""
    shared = Shared(bare, quorum=2, deadline_seconds=300, lease_seconds=0.05)
    gone = shared.attach("a", leads=True)
    gone.send([1.0, 1.0], overrides=[run_pb2.Override(group=0, lr=0.125)])
    shared.until_waiting("a")
    gone.stream.call.cancel()
    eventually(lambda: not shared.workers().workers[0].leased, "the lease of a has ended")
    new = shared.attach("b", leads=True)
    new.send([1.0, 1.0], overrides=[run_pb2.Override(group=0, lr=0.5)])
    again = shared.attach("a", resumes=1)
    assert again.stream.attached.waiting_sequence == 0
    again.send([3.0, 3.0])
    assert [list(worker.answer().learning_rates) for worker in (again, new)] == [[0.5], [0.5]]
    assert shared.read() == [-1.0, -1.0]


def test_there_are_no_more_workers_than_may_be(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1, max_workers=2)
    workers = [shared.attach("a"), shared.attach("b")]
    refused("RUN_BUSY", lambda: shared.attach("c"))
    shared.attach("a")
    workers[1].leave()
    shared.attach("c")


@pytest.mark.parametrize(
    "options",
    [
        {"quorum": 65},
        {"start_with": 65},
        {"at_least": 65},
        {"max_workers": 1025},
        {"deadline_seconds": 0.0},
        {"lease_seconds": 0.0},
        {"quorum_weight": -1.0},
        {"grace_seconds": float("inf")},
    ],
    ids=str,
)
def test_malformed_options_are_refused(bare: BareClient, options: dict[str, Any]) -> None:
    refused("INVALID_SPEC", lambda: Shared(bare, **options))


def test_sequences_may_have_gaps_and_never_go_back(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1)
    worker = shared.attach("a")
    worker.sequence = 6
    assert worker.step_alone([1.0, 1.0]).contribution.kind == ACCEPTED
    worker.sequence = 3
    worker.send([1.0, 1.0])
    with pytest.raises(Refusal, match="contribution 4 is not above the last one that was answered, 7") as caught:
        worker.answer()
    assert (caught.value.reason, caught.value.applied) == ("SEQUENCE_MISMATCH", "unknown")
    assert shared.read() == [-1.0, -1.0]


def test_a_worker_that_attaches_twice_loses_its_first_stream(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, deadline_seconds=300)
    first = shared.attach("a")
    first.send([1.0, 1.0])
    shared.until_waiting("a")
    shared.attach("a")
    assert "two processes use one worker_id" in str(refused("FENCED", first.answer))


def test_a_process_that_has_been_replaced_is_not_told_its_successors_outcome(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, deadline_seconds=300)
    old = shared.attach("a", session="old")
    old.send([1000.0, 1000.0])
    shared.until_waiting("a")
    old.stream.call.cancel()
    new = shared.attach("a", session="new")
    new.send([1.0, 1.0])
    shared.until_waiting("a")
    with pytest.raises(Refusal, match="do two use one worker_id") as caught:
        shared.attach("a", session="old", resumes=1)
    assert (caught.value.reason, caught.value.applied) == ("FENCED", "unknown")
    b = shared.attach("b")
    b.send([1.0, 1.0])
    assert [worker.answer().contribution.contributors for worker in (new, b)] == [2, 2]
    assert shared.read() == [-1.0, -1.0]


def test_parameters_that_a_worker_has_read_are_those_that_it_has(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1, max_staleness=1, deadline_seconds=300)
    a, b = shared.attach("a"), shared.attach("b")
    a.step_alone([1.0, 1.0])
    bare.call("ReadParameters", service_pb2.ReadParametersRequest(name=f"runs/{shared.name}", worker_id="b"))
    assert a.step_alone([1.0, 1.0]).contribution.reason == "QUORUM"
    b.leave()


def test_a_deferred_contribution(bare: BareClient) -> None:
    """As clients that overlap sending with computing send it."""
    shared = Shared(bare, [0.0] * 3, quorum=1, spec={"groups": [sgd(a=[1], b=[2])]})
    stream = shared.attach("a").stream

    def send(offset: int, values: list[float], last: bool = False, **header: Any) -> None:
        message = train_pb2.Gradients(sequence=1, offset=offset, data=pack(values), last=last)
        if header:
            message.header.CopyFrom(train_pb2.BlockHeader(deferred=True, **header))
        stream.send(message)

    send(1, [7.0, 7.0], steps=1)
    send(0, [1.0])
    send(1, [2.0, 3.0])
    send(0, [4.0], last=True, contribution=train_pb2.Contribution(weight=2.0))
    receipt = list(stream.answer())[-1].receipt
    assert receipt.contribution.kind == ACCEPTED
    assert shared.read() == [-4.0, -2.0, -3.0]


def test_the_norm_of_each_contribution_or_of_the_round_is_clipped(bare: BareClient) -> None:
    found = {}
    for clip in (run_pb2.SharedRun.CLIP_CONTRIBUTION, run_pb2.SharedRun.CLIP_ROUND):
        shared = Shared(bare, quorum=2, clip=clip, spec={"clip_norm": 1.0})
        a, b = shared.attach("a"), shared.attach("b")
        a.send([300.0, 400.0])
        b.send([0.0, 0.0])
        (norm,) = {worker.answer().gradient_norm for worker in (a, b)}
        found[clip] = [norm, *a.params]
    assert found[run_pb2.SharedRun.CLIP_CONTRIBUTION] == pytest.approx([0.5, -0.3, -0.4])
    assert found[run_pb2.SharedRun.CLIP_ROUND] == pytest.approx([250.0, -0.6, -0.8])


@pytest.mark.parametrize(
    ("clip", "moved"), [(run_pb2.SharedRun.CLIP_CONTRIBUTION, 0.5), (run_pb2.SharedRun.CLIP_ROUND, 1.0)]
)
def test_the_values_of_each_contribution_or_of_the_round_are_clipped(
    bare: BareClient, clip: run_pb2.SharedRun.Clip.ValueType, moved: float
) -> None:
    shared = Shared(bare, quorum=2, clip=clip, spec={"clip_value": 1.0})
    a, b = shared.attach("a"), shared.attach("b")
    a.send([3.0, -3.0])
    b.send([0.0, 0.0])
    assert [worker.answer().contribution.kind for worker in (a, b)] == [ACCEPTED, ACCEPTED]
    assert shared.read() == [-moved, moved]


def test_half_an_upload_is_no_contribution(bare: BareClient) -> None:
    """It uses up no sequence, either."""
    shared = Shared(bare, quorum=2, deadline_seconds=300)
    a = shared.attach("a")
    header = train_pb2.BlockHeader(steps=1, contribution=train_pb2.Contribution())
    a.stream.send(train_pb2.Gradients(sequence=1, header=header, data=pack([1000.0])))
    eventually(lambda: shared.workers().workers[0].wait.kind == service_pb2.WAITS_FOR_GRADIENTS, "half of it is there")
    a.stream.call.cancel()
    eventually(lambda: not shared.workers().workers[0].attached, "the server knows that its stream has broken")
    a, b = shared.attach("a", resumes=1), shared.attach("b")
    assert (a.sequence, a.stream.attached.waiting_sequence) == (0, 0)
    b.send([1.0, 1.0])
    shared.until_waiting("b")
    assert [worker.waiting for worker in shared.workers().workers] == [False, True]
    a.send([3.0, 3.0])
    assert [worker.answer().contribution.contributors for worker in (a, b)] == [2, 2]
    assert shared.read() == [-2.0, -2.0]


def test_overrides_take_effect_with_their_round(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2)
    a, b = shared.attach("a", leads=True), shared.attach("b")
    a.send([1.0, 1.0], overrides=[run_pb2.Override(group=0, lr=0.5)])
    b.send([1.0, 1.0])
    assert [list(worker.answer().learning_rates) for worker in (a, b)] == [[0.5], [0.5]]
    assert a.params == [-0.5, -0.5]


def test_a_quorum_of_weight(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1, quorum_weight=3.0, deadline_seconds=300)
    a, b = shared.attach("a"), shared.attach("b")
    a.send([1.0, 1.0], weight=1.0)
    shared.until_waiting("a")
    assert shared.workers().waiting_for.startswith("1 of 1, weight 1 of 3")
    b.send([1.0, 1.0], weight=2.0)
    assert [worker.answer().contribution.total_weight for worker in (a, b)] == [3.0, 3.0]


def test_a_run_begins_with_so_many(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1, start_with=2, deadline_seconds=0.05, stale=run_pb2.SharedRun.STALE_REJECT)
    a = shared.attach("a")
    a.send([1.0, 1.0])
    shared.until_waiting("a")
    assert shared.workers().waiting_for == "the run begins with 2 workers, and 1 are here"
    shared.attach("b")
    assert a.answer().contribution.kind == ACCEPTED


def test_the_first_round_is_of_all_with_whom_the_run_begins(bare: BareClient) -> None:
    shared = Shared(bare, start_with=3, deadline_seconds=300)
    a = shared.attach("a")
    a.send([1.0, 1.0])
    shared.until_waiting("a")
    b, c = shared.attach("b"), shared.attach("c")
    b.send([1.0, 1.0])
    c.send([1.0, 1.0])
    assert [worker.answer().contribution.contributors for worker in (a, b, c)] == [3, 3, 3]


def test_a_quorum_counts_from_when_the_run_has_begun(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1, start_with=2, deadline_seconds=0.3)
    a = shared.attach("a")
    a.send([1.0, 1.0])
    shared.until_waiting("a")
    time.sleep(0.4)  # longer than a round would wait for who is behind
    b = shared.attach("b")
    b.send([1.0, 1.0])
    assert [worker.answer().contribution.contributors for worker in (a, b)] == [2, 2]


def test_who_is_too_slow_is_set_aside_until_it_contributes(bare: BareClient) -> None:
    shared = Shared(bare, quorum=1, deadline_seconds=0.2)
    slow, fast = shared.attach("slow"), shared.attach("fast")
    assert fast.step_alone([1.0, 1.0]).contribution.reason == "SET_ASIDE"
    assert [worker.aside for worker in shared.workers().workers] == [False, True]
    assert fast.step_alone([1.0, 1.0]).contribution.reason == "QUORUM"
    assert slow.step_alone([1.0, 1.0]).contribution.kind == STALE
    assert [worker.aside for worker in shared.workers().workers] == [False, False]
    counts = {worker.worker_id: (worker.accepted, worker.stale) for worker in shared.workers().workers}
    assert counts == {"fast": (2, 0), "slow": (0, 1)}


def test_a_quorum_of_all_is_of_those_who_were_there_when_it_opened(bare: BareClient) -> None:
    shared = Shared(bare, deadline_seconds=300)
    a, b = shared.attach("a"), shared.attach("b")
    a.send([1.0, 1.0])
    shared.until_waiting("a")
    late = shared.attach("late")
    b.send([1.0, 1.0])
    assert [worker.answer().contribution.contributors for worker in (a, b)] == [2, 2]
    assert late.stream.attached.step == 0


def test_a_quorum_of_all_is_of_those_who_are_still_there(bare: BareClient) -> None:
    shared = Shared(bare, deadline_seconds=300, lease_seconds=0.2)
    a, b, c = shared.attach("a"), shared.attach("b"), shared.attach("c")
    a.send([1.0, 1.0])
    shared.until_waiting("a")
    b.leave()
    c.stream.call.cancel()
    assert a.answer().contribution.contributors == 1


def test_why_a_worker_waits_is_told(bare: BareClient) -> None:
    shared = Shared(bare, quorum=2, deadline_seconds=300)
    slow = shared.attach("slow")
    fast = shared.attach("fast")
    fast.send([1.0, 1.0])
    while not (found := shared.workers()).waiting_for:
        pass
    assert found.waiting_for.startswith("1 of 2; waits for slow, last heard")
    assert [(worker.worker_id, worker.waiting) for worker in found.workers] == [("fast", True), ("slow", False)]
    slow.send([3.0, 3.0])
    assert [worker.answer().contribution.contributors for worker in (fast, slow)] == [2, 2]
