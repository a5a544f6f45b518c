"""Contributions to shared runs: what is sent of them, how often, and what becomes of each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from gradwire.client import ConnectionLost, Draining, Fenced, GradwireError, NonFiniteGradient, RetryPolicy
from gradwire.v1 import train_pb2
from gradwire.wire.errors import ProtocolViolation
from tests.client.training.scripted_rounds import Call, Kind, Requests, ScriptedRounds, answer, attached, waits
from tests.faults.hosted import InBackground, eventually

ONES = {"w": np.ones(2, np.float32)}
Answers = Iterator[train_pb2.TrainResponse]


def answers(*responses: train_pb2.TrainResponse, **fields: Any) -> Call:
    """Attaches, and answers one block after another."""

    def call(requests: Requests) -> Answers:
        yield attached(**fields)
        for response in responses:
            if response.HasField("parameters"):
                requests.block()
            yield response
        requests.until_it_ends()

    return call


def cut_while_it_waits(requests: Requests) -> Answers:
    yield attached()
    requests.block()
    yield waits(5.0)
    requests.cut()


def refused_while_it_waits(error: GradwireError) -> Call:
    def call(requests: Requests) -> Answers:
        yield attached()
        requests.block()
        yield waits(5.0)
        requests.refuse(error)

    return call


def answers_without_being_asked(*responses: train_pb2.TrainResponse, **fields: Any) -> Call:
    def call(requests: Requests) -> Answers:
        yield attached(**fields)
        yield from responses
        requests.until_it_ends()

    return call


# --- what is said ----------------------------------------------------------------------------------------------------


def test_a_contribution_says_its_weight_and_which_parameters_it_was_computed_from() -> None:
    script = answers(answer(1, 7.0, step=5, epoch=1), answer(2, 8.0, step=6), step=0)
    with ScriptedRounds(script) as server, server.attach() as run:
        assert run.step(ONES, weight=32).step == 5
        assert run.params["w"].tolist() == [7.0, 7.0]
        assert run.step_count == 5
        run.step(ONES)
    first, second = (block.header.contribution for block in server.blocks)
    assert (first.weight, first.base_step, first.base_epoch) == (32.0, 0, 1)
    assert (second.weight, second.base_step, second.base_epoch) == (1.0, 5, 1)
    (attach,) = server.attaches
    assert list(attach.understands) == [train_pb2.FEATURE_SHARED_RUN, train_pb2.FEATURE_REASONED_WAIT]
    assert (attach.leads, attach.resumes, attach.base_step, attach.HasField("base_step")) == (True, 0, 0, True)


def test_who_has_no_parameters_yet_says_so_when_it_attaches() -> None:
    with ScriptedRounds(answers(step=4), newest=(3.0, 4, 1)) as server, server.attach(params=False) as run:
        assert not server.attaches[0].HasField("base_step")
        assert (run.step_count, run.params["w"].tolist()) == (4, [3.0, 3.0])


def test_who_has_created_a_run_takes_what_others_have_made_of_it_meanwhile() -> None:
    with ScriptedRounds(answers(step=4), newest=(3.0, 4, 1)) as server, server.attach() as run:
        assert (server.reads, run.step_count) == (1, 4)


def test_an_answer_covers_tensors_that_had_no_gradient() -> None:
    with ScriptedRounds(answers(answer(1, 7.0))) as server, server.attach(double_buffer=True) as run:
        assert run.step({}).applied
        assert run.params["w"].tolist() == [7.0, 7.0]
    assert list(server.blocks[0].header.absent_tensors) == [0]
    assert server.blocks[0].data == b""


def test_who_closes_says_that_nobody_need_wait_for_it() -> None:
    with ScriptedRounds(answers()) as server:
        server.attach().close()
    (last,) = server.seen
    assert last.HasField("leave")


@pytest.mark.parametrize(
    ("weight", "error", "said"),
    [
        (0, ValueError, "finite number > 0"),
        (-1.0, ValueError, "finite number > 0"),
        (nan, ValueError, "finite number > 0"),
        (inf, ValueError, "finite number > 0"),
        ("1", TypeError, "expected a number"),
        (True, TypeError, "expected a number"),
    ],
)
def test_a_weight_that_is_none_is_refused_before_anything_is_sent(weight: Any, error: type, said: str) -> None:
    with ScriptedRounds(answers(answer(1, 7.0))) as server, server.attach() as run:
        with pytest.raises(error, match=f"^weight is .*{said}"):
            run.step(ONES, weight=weight)
        assert server.blocks == []
        assert run.step(ONES).applied


def test_a_block_of_several_steps_is_no_contribution() -> None:
    with ScriptedRounds(answers()) as server, server.attach() as run, pytest.raises(ValueError, match="K = 1"):
        run.step_many({"w": np.ones((2, 2), np.float32)})


# --- outcomes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [(Kind.KIND_STALE, "stale", "TOO_STALE"), (Kind.KIND_DROPPED, "dropped", "NO_QUORUM"), (3, "refused", "ANOTHER")],
)
def test_what_was_not_applied_comes_back_as_a_receipt_with_the_newest_parameters(
    kind: int, name: str, reason: str
) -> None:
    said = answer(1, 7.0, kind, step=9, reason=reason, message="in words", share=0.25, staleness=2)
    with ScriptedRounds(answers(said, answer(2, 8.0))) as server, server.attach() as run:
        receipt = run.step(ONES)
        assert (receipt.outcome, receipt.reason, receipt.message) == (name, reason, "in words")
        assert (receipt.applied, receipt.share, receipt.staleness, receipt.step) == (False, 0.25, 2, 9)
        assert (receipt.round, receipt.contributors, receipt.total_weight) == (1, 2, 3.0)
        assert run.params["w"].tolist() == [7.0, 7.0]
        assert run.last_sequence == 1, "every outcome uses up its sequence"
        assert run.step(ONES).applied
    assert [block.sequence for block in server.blocks] == [1, 2]
    assert server.blocks[1].header.contribution.base_step == 9


def test_a_gradient_that_is_not_finite_is_told_as_an_exception_and_nothing_else_ends() -> None:
    refused = answer(1, 7.0, Kind.KIND_REFUSED, reason="NON_FINITE_GRADIENT", message="w holds a NaN", round=0)
    with ScriptedRounds(answers(refused, answer(2, 8.0))) as server, server.attach() as run:
        with pytest.raises(NonFiniteGradient, match="w holds a NaN") as caught:
            run.step(ONES)
        assert caught.value.applied is False
        assert run.last_receipt is not None
        assert run.last_receipt.outcome == "refused"
        assert (run.params["w"].tolist(), run.stale) == ([7.0, 7.0], False)
        assert run.step(ONES).outcome == "accepted"
    assert len(server.attaches) == 1, "the stream lives on"


@pytest.mark.parametrize("kind", [0, 99])
def test_an_outcome_that_there_is_none_of_is_not_taken_for_another(kind: int) -> None:
    with ScriptedRounds(answers(answer(1, 7.0, kind))) as server, server.attach() as run:
        with pytest.raises(ProtocolViolation, match=f"the server said {kind} of what became") as caught:
            run.step(ONES)
        assert caught.value.applied is None


@pytest.mark.parametrize(
    ("kind", "skipped", "kept"),
    [(Kind.KIND_ACCEPTED, [], True), (Kind.KIND_ACCEPTED, [0], False), (Kind.KIND_STALE, [], False)],
)
def test_what_int8_has_lost_of_a_gradient_that_was_not_applied_is_dropped(
    kind: int, skipped: list[int], kept: bool
) -> None:
    script = answers(answer(1, 7.0, kind, skipped_steps=skipped), answer(2, 8.0))
    with ScriptedRounds(script) as server, server.attach(gradient_encoding="int8") as run:
        uneven = {"w": np.array([1.0, 0.005], np.float32)}
        run.step(uneven)
        run.step(uneven)
    first, second = (block.data for block in server.blocks)
    assert (first != second) is kept


# --- exactly once ----------------------------------------------------------------------------------------------------


def test_a_contribution_that_waits_is_not_sent_again_when_its_stream_breaks() -> None:
    resumed = answers_without_being_asked(waits(12.0), answer(1, 7.0), waiting_sequence=1)
    with ScriptedRounds(cut_while_it_waits, resumed) as server, server.attach() as run:
        assert run.step(ONES).applied
        assert run.params["w"].tolist() == [7.0, 7.0]
        assert (run.last_sequence, len(server.blocks)) == (1, 1)
    assert [attach.resumes for attach in server.attaches] == [0, 1]


def test_one_that_was_answered_meanwhile_is_asked_for() -> None:
    script = answers(answer(1, 7.0, Kind.KIND_STALE), last_sequence=1, last_accepted_sequence=0)
    with ScriptedRounds(cut_while_it_waits, script) as server, server.attach() as run:
        assert run.step(ONES).outcome == "stale"
    sent, asked = server.blocks
    assert (asked.sequence, asked.last, asked.data, asked.HasField("header")) == (1, True, b"", False)
    assert sent.data != b""


def test_one_of_which_nothing_is_left_is_sent_again_as_it_was() -> None:
    with ScriptedRounds(cut_while_it_waits, answers(answer(1, 7.0))) as server, server.attach() as run:
        assert run.step(ONES, weight=2).applied
    first, second = server.blocks
    assert first == second


def test_a_server_that_drains_has_not_applied_it_and_the_next_one_gets_it() -> None:
    drains = refused_while_it_waits(Draining("about to stop", applied=False))
    with ScriptedRounds(drains, answers(answer(1, 7.0))) as server, server.attach() as run:
        assert run.step(ONES).applied
    assert [attach.resumes for attach in server.attaches] == [0, 0]
    assert [block.sequence for block in server.blocks] == [1, 1]


def test_patience_with_failures_begins_anew_with_every_wait() -> None:
    """Of a policy that never tries again after its first failure is over."""
    policy = RetryPolicy(deadline_seconds=0.5, initial_backoff_seconds=0.3)
    cuts = [cut_while_it_waits] * 4
    with ScriptedRounds(*cuts, answers(answer(1, 7.0))) as server, server.attach(retry=policy) as run:
        assert run.step(ONES).applied


def test_a_write_goes_to_the_caller_and_the_next_gradient_is_told_that_history_has_changed() -> None:
    fenced = refused_while_it_waits(Fenced("the parameters have been replaced", applied=False))
    stale = answer(1, 7.0, Kind.KIND_STALE, reason="HISTORY_CHANGED", round=0, epoch=2)
    with ScriptedRounds(fenced, answers(stale, answer(2, 8.0, epoch=2), epoch=2)) as server, server.attach() as run:
        with pytest.raises(Fenced) as caught:
            run.step(ONES)
        assert (caught.value.applied, run.stale) == (False, True)
        assert run.step(ONES).reason == "HISTORY_CHANGED"
        assert (run.stale, run.params["w"].tolist()) == (False, [7.0, 7.0])
        assert run.step(ONES).applied
    bases = [block.header.contribution.base_epoch for block in server.blocks]
    assert bases == [1, 1, 2], "a gradient is of the parameters that it was computed from"


def test_who_reads_after_a_write_computes_from_the_new_parameters() -> None:
    fenced = refused_while_it_waits(Fenced("the parameters have been replaced", applied=False))
    with ScriptedRounds(fenced, answers(answer(1, 8.0, epoch=2), epoch=2)) as server, server.attach() as run:
        with pytest.raises(Fenced):
            run.step(ONES)
        server.newest = (7.0, 3, 2)
        run.refresh()
        assert run.step(ONES).applied
    contribution = server.blocks[1].header.contribution
    assert (contribution.base_step, contribution.base_epoch) == (3, 2)


# --- waiting ---------------------------------------------------------------------------------------------------------


def test_from_ten_seconds_on_a_wait_is_said_why_and_then_every_ten(caplog: pytest.LogCaptureFixture) -> None:
    told = [waits(since, f"{since:.0f}") for since in (5.0, 9.9, 10.0, 15.0, 20.1, 25.0, 30.2)]

    def call(requests: Requests) -> Answers:
        yield attached()
        requests.block()
        yield from told
        yield answer(1, 7.0)
        requests.until_it_ends()

    with caplog.at_level(logging.WARNING), ScriptedRounds(call) as server, server.attach() as run:
        assert run.step(ONES).applied
    said = [record.getMessage() for record in caplog.records if record.name.endswith("waiting_log")]
    assert said == [f"runs/x: no answer for {since} s: {since}" for since in (10, 20, 30)]


def test_an_answer_that_a_fence_cuts_is_no_conflict_afterwards() -> None:
    """It was decided, so its number is used up, though nothing was applied."""

    def cut(requests: Requests) -> Answers:
        yield attached()
        requests.block()
        requests.refuse(Fenced("the values have been replaced", applied=False, epoch=2, sequence=1))

    def again(requests: Requests) -> Answers:
        yield attached(last_sequence=1, epoch=2)
        assert requests.block().sequence == 2
        yield answer(2, 7.0, epoch=2)
        requests.until_it_ends()

    with ScriptedRounds(cut, again, newest=(1.0, 0, 2)) as server, server.attach() as run:
        with pytest.raises(Fenced) as caught:
            run.step(ONES)
        assert caught.value.applied is False
        assert run.step(ONES).applied


@pytest.mark.parametrize("double_buffer", [False, True])
def test_after_half_an_answer_a_gradient_is_of_no_parameters_that_there_have_been(double_buffer: bool) -> None:
    half = answer(1, 7.0)
    half.parameters.ClearField("receipt")
    half.parameters.data = half.parameters.data[:4]

    def cut(requests: Requests) -> Answers:
        yield attached()
        requests.block()
        yield half
        requests.refuse(Fenced("the values have been replaced", applied=False, epoch=2, sequence=1))

    again = answers(answer(2, 8.0, step=2, epoch=2), last_sequence=1, epoch=2)
    script = ScriptedRounds(cut, again, newest=(5.0, 1, 2))
    with script as server, server.attach(double_buffer=double_buffer) as run:
        with pytest.raises(Fenced):
            run.step(ONES)
        if double_buffer:
            assert run.params["w"].tolist() == [0, 0]
        else:
            assert run.params["w"].tolist() == [7, 0]
            with pytest.raises(ValueError, match=r"mix old and new values .* expected refresh\(\) first"):
                run.step(ONES)
            run.refresh()
        assert run.step(ONES).applied
    assert server.blocks[-1].header.contribution.base_step == (0 if double_buffer else 1)


def test_who_closes_while_a_step_waits_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for workers that never come."""
    monkeypatch.setattr("gradwire.client.training.shared_attachment.PATIENCE_SECONDS", 0.01)

    def call(requests: Requests) -> Answers:
        yield attached()
        requests.block()
        yield waits(5.0)
        requests.until_it_ends()

    def leaving(requests: Requests) -> Answers:
        yield attached()
        requests.until_it_ends()

    with ScriptedRounds(call, leaving, answers(answer(1, 7.0))) as server, server.attach() as run:
        with InBackground(lambda: run.step(ONES)) as waiting:
            eventually(lambda: len(server.blocks) == 1, "the contribution is there")
            run.close()
            assert server.attaches[1].resumes == 0, "what waited is withdrawn"
            with pytest.raises(ConnectionLost, match="was closed while worker rank-0 waited") as caught:
                waiting.result()
        assert caught.value.applied is None
        assert run.step(ONES).applied, "a run that was closed can go on"


def test_who_closes_while_a_step_attaches_anew_to_a_server_that_says_nothing_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gradwire.client.training.shared_attachment.PATIENCE_SECONDS", 0.01)

    def silent(requests: Requests) -> Answers:
        yield from ()
        requests.until_it_ends()

    retry = RetryPolicy(deadline_seconds=3600, initial_backoff_seconds=0.01)
    with (
        ScriptedRounds(cut_while_it_waits, silent, answers()) as server,
        server.attach(retry=retry) as run,
        InBackground(lambda: run.step(ONES)) as waiting,
    ):
        eventually(lambda: len(server.attaches) == 2, "the step attaches anew")
        run.close()
        with pytest.raises(ConnectionLost, match="was closed while worker rank-0 waited") as caught:
            waiting.result()
        assert caught.value.applied is None
