"""Deferred blocks: gradients come in any order and may come again; the last message says what holds."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gradwire.v1 import run_pb2, service_pb2, train_pb2
from tests.contract.bare import BareClient, group, pack, refused, unpack
from tests.contract.deferred import ANY, FULL, INF, NAN, answered, headed, outcome, piece, plain, whole_state
from tests.faults.hosted import HostedServer, eventually


@pytest.fixture
def twin(bare: BareClient, name: str) -> Iterator[str]:
    """A run like `name`, for plain blocks."""
    chosen = f"{name}-twin"
    spec = bare.get(name).spec
    bare.create(chosen, spec.groups, [0.0] * 7)
    yield chosen
    bare.call("DeleteRun", service_pb2.DeleteRunRequest(name=f"runs/{chosen}"))


def test_nothing_is_answered_before_the_last_message_and_then_all_of_it(bare: BareClient, name: str) -> None:
    """Computed early, the answer would have come in as many parts as the gradient."""
    with bare.attach(name) as stream:
        values, receipt, parts = answered(
            stream,
            headed(2, FULL[2:6], returns=train_pb2.RETURNS_LAST),
            piece(6, FULL[6:]),
            headed(0, FULL[:2], last=True),
        )
    assert (values, receipt.step, parts) == ({0: bare.read(name)[1]}, 1, 1)


def test_elements_that_are_sent_again_replace_what_was_sent_before(bare: BareClient, name: str, twin: str) -> None:
    with bare.attach(name) as stream:
        answered(
            stream,
            headed(1, [9.0] * 5),
            piece(0, [NAN] * 7),
            piece(3, [8.0] * 2),
            piece(0, FULL),
            piece(2, [INF] * 3),
            headed(2, FULL[2:5], last=True),
        )
    plain(bare, twin, FULL)
    assert whole_state(bare, name) == whole_state(bare, twin)


def test_what_the_first_header_says_besides_the_steps_need_not_be_valid(bare: BareClient, name: str) -> None:
    before = bare.get(name).spec
    wrong = [run_pb2.Override(group=7, lr=-1), run_pb2.Override(group=7, lr=NAN), run_pb2.Override(group=0, lr=0.5)]
    with bare.attach(name) as stream:
        first = headed(0, FULL[:3], absent_tensors=[0, 99], returns=ANY, overrides=wrong)
        values, receipt, _ = answered(stream, first, headed(3, FULL[3:], last=True))
    assert len(values[0]) == 7
    assert list(receipt.learning_rates) == [1e-3, 1e-3]
    assert bare.get(name).spec == before


@pytest.mark.parametrize("steps", [2**21 + 1, 2**32 - 1])
def test_the_steps_of_the_first_header_are_checked_at_once(bare: BareClient, name: str, steps: int) -> None:
    with bare.attach(name) as stream:
        stream.send(headed(0, [], steps=steps))
        refused("PROTOCOL_VIOLATION", stream.receive)


def test_the_last_header_decides_what_is_absent(bare: BareClient, name: str, twin: str) -> None:
    """What was sent of absent tensors is neither applied nor counted nor looked at."""
    with bare.attach(name) as stream:
        first = headed(1, [NAN, INF, 1e30], absent_tensors=[2])
        values, receipt, _ = answered(
            stream, first, piece(0, FULL), headed(2, [NAN] * 4, last=True, absent_tensors=[1])
        )
    with bare.attach(twin) as stream:
        stream.send(headed(0, FULL[:2], deferred=False, absent_tensors=[1]), piece(6, FULL[6:], last=True))
        expected = list(stream.answer())
    assert receipt.received_bytes == 4 * (3 + 7 + 4)  # all that came
    assert outcome(receipt) == outcome(expected[-1].receipt)
    assert receipt.gradient_norm == math.sqrt(1 + 4 + 49)
    assert values == {part.offset: unpack(part.data) for part in expected}
    assert sorted(values) == [0, 6]
    assert whole_state(bare, name) == whole_state(bare, twin)
    assert whole_state(bare, name)[2] == [1, 0, 1]


def test_nothing_that_was_sent_of_an_absent_tensor_counts_in_clipping_or_skipping(bare: BareClient) -> None:
    """The norm that clips is that of the present elements, and NaN in others is no reason to leave out a step."""
    states = []
    for run, filler in (("deferred-clip", 1e6), ("deferred-clip-twin", 0.0)):
        policy = run_pb2.NON_FINITE_POLICY_SKIP
        bare.create(run, [group(a=[2], b=[2])], [0.0] * 4, clip_norm=1.0, non_finite_policy=policy)
        with bare.attach(run) as stream:
            absent = [filler, NAN if filler else 0.0]
            messages = headed(2, absent), headed(0, [3.0, 4.0], last=True, absent_tensors=[1])
            assert list(answered(stream, *messages)[1].skipped_steps) == []
        states.append(whole_state(bare, run))
    assert states[0] == states[1]
    assert states[0][0][0] != 0.0


def test_the_last_header_decides_what_is_overridden_and_returned(bare: BareClient, name: str, twin: str) -> None:
    early: dict[str, Any] = {"overrides": [run_pb2.Override(group=0, lr=9)], "returns": train_pb2.RETURNS_TRAJECTORY}
    late: dict[str, Any] = {"overrides": [run_pb2.Override(group=1, lr=0.5)], "returns": train_pb2.RETURNS_NONE}
    with bare.attach(name) as stream:
        values, receipt, parts = answered(stream, headed(0, FULL, **early), headed(0, [], last=True, **late))
    assert (values, parts, list(receipt.learning_rates)) == ({}, 1, [1e-3, 0.5])
    plain(bare, twin, FULL, **late)
    assert whole_state(bare, name) == whole_state(bare, twin)
    assert [one.adam.lr for one in bare.get(name).spec.groups] == [1e-3, 0.5]
    with bare.attach(name, "another") as stream:
        values, receipt, _ = answered(
            stream,
            headed(0, FULL * 2, steps=2),
            headed(0, [], last=True, steps=2, returns=train_pb2.RETURNS_TRAJECTORY),
        )
    assert (len(values[0]), receipt.step) == (14, 3)


def test_a_header_before_the_last_message_begins_the_block_anew(bare: BareClient, name: str, twin: str) -> None:
    """Also with other steps, also more than once."""
    with bare.attach(name) as stream:
        answered(
            stream,
            headed(0, [NAN] * 21, steps=3),
            headed(4, [5.0] * 3),
            headed(1, FULL[1:] * 2, steps=2),
            headed(0, [1.0, 1.0], steps=2, last=True),
        )
    plain(bare, twin, FULL * 2, steps=2)
    assert whole_state(bare, name) == whole_state(bare, twin)


def test_a_plain_header_begins_the_block_anew_as_a_plain_one(bare: BareClient, name: str, twin: str) -> None:
    """Its slices need no header, and one message of it is enough."""
    with bare.attach(name) as stream:
        stream.send(headed(0, [9.0] * 7), headed(0, FULL[:2], deferred=False), piece(2, FULL[2:], last=True))
        assert list(stream.answer())[-1].receipt.step == 1
        assert answered(
            stream, headed(0, [NAN] * 7, sequence=2), headed(0, FULL, sequence=2, deferred=False, last=True)
        )
    plain(bare, twin, FULL, FULL)
    assert whole_state(bare, name) == whole_state(bare, twin)


def test_what_had_arrived_before_the_block_began_anew_is_forgotten(bare: BareClient, name: str) -> None:
    with bare.attach(name) as stream:
        stream.send(headed(0, FULL), headed(0, FULL[:6]), headed(0, [], last=True))
        error = refused("INCOMPLETE_VALUES", lambda: list(stream.answer()))
    assert error.info.metadata["first_missing"] == "6"


def test_one_message_may_be_first_and_last(bare: BareClient, name: str, twin: str) -> None:
    """An ordinary block then, but that it may hold elements of absent tensors."""
    with bare.attach(name) as stream:
        assert answered(stream, headed(0, FULL, last=True))[0] == {0: bare.read(name)[1]}
        holey = headed(0, [*FULL[:2], NAN, INF, NAN, NAN, *FULL[6:]], sequence=2, last=True, absent_tensors=[1])
        assert sorted(answered(stream, holey)[0]) == [0, 6]
    with bare.attach(twin) as stream:
        stream.step(1, FULL)
        stream.send(headed(0, FULL[:2], sequence=2, deferred=False, absent_tensors=[1]))
        stream.send(piece(6, FULL[6:], sequence=2, last=True))
        list(stream.answer())
    assert whole_state(bare, name) == whole_state(bare, twin)


def test_deferred_and_plain_blocks_may_follow_each_other(bare: BareClient, name: str, twin: str) -> None:
    with bare.attach(name) as stream:
        answered(stream, headed(0, FULL), headed(0, [], last=True))
        stream.step(2, FULL[::-1])
        answered(stream, headed(3, FULL[3:], sequence=3), headed(0, FULL[:3], sequence=3, last=True))
    plain(bare, twin, FULL, FULL[::-1], FULL)
    assert whole_state(bare, name) == whole_state(bare, twin)


def test_the_last_sequence_sent_again_is_answered_with_its_result(bare: BareClient, name: str) -> None:
    """Whatever of it comes before its last message is passed over."""
    block = [headed(2, FULL[2:]), piece(0, [NAN] * 7), headed(0, FULL, steps=2), headed(0, FULL, last=True)]
    with bare.attach(name) as stream:
        answered(stream, headed(0, FULL, last=True))
        first = answered(stream, headed(0, FULL, sequence=2), headed(0, [], sequence=2, last=True))
        for message in block:
            message.sequence = 2
        again = answered(stream, *block)
    assert (again[0], again[1].step, again[1].repeated) == (first[0], 2, True)
    with bare.attach(name) as stream:
        assert stream.attached.last_sequence == 2
        assert answered(stream, *block)[1].repeated


def test_a_stream_killed_in_the_middle_leaves_the_last_whole_step_and_the_number_free(
    bare: BareClient, name: str, twin: str
) -> None:
    stream = bare.attach(name)
    answered(stream, headed(0, FULL), headed(0, [], last=True))
    before = whole_state(bare, name)
    stream.send(headed(0, [9.0] * 7, sequence=2), piece(0, [8.0] * 7, sequence=2))
    stream.call.cancel()
    eventually(lambda: not bare.get(name).attached_worker_id, "the server has noticed")
    assert whole_state(bare, name) == before
    with bare.attach(name) as stream:
        assert (stream.attached.step, stream.attached.last_sequence) == (1, 1)
        assert answered(stream, headed(0, FULL, sequence=2, last=True))[1].step == 2
    plain(bare, twin, FULL, FULL)
    assert whole_state(bare, name) == whole_state(bare, twin)


def take_over(bare: BareClient, name: str) -> None:
    bare.attach(name, "another", takeover=True).close()


def attach_again(bare: BareClient, name: str) -> None:
    bare.attach(name).close()


def write(bare: BareClient, name: str) -> None:
    header = service_pb2.WriteParametersHeader(name=f"runs/{name}")
    part = run_pb2.Slice(data=pack([3.0] * 7))
    requests = [service_pb2.WriteParametersRequest(header=header), service_pb2.WriteParametersRequest(slice=part)]
    bare.call("WriteParameters", iter(requests))


@pytest.mark.parametrize("act", [take_over, attach_again, write])
def test_who_loses_the_run_in_the_middle_is_fenced(bare: BareClient, name: str, act: Any) -> None:
    stream = bare.attach(name)
    stream.send(headed(0, FULL))
    act(bare, name)
    before = bare.read(name)
    stream.send(headed(0, [], last=True))
    refused("FENCED", stream.receive)
    assert bare.read(name) == before
    with bare.attach(name) as stream:
        assert stream.attached.last_sequence == 0


def test_a_drain_ends_the_wait_for_the_next_message() -> None:
    with HostedServer() as hosted, BareClient(hosted.target) as bare:
        bare.create("x", [group(w=[7])], [0.0] * 7)
        stream = bare.attach("x")
        stream.send(headed(0, FULL))
        eventually(lambda: hosted.run_of("x").holder is not None, "attached")
        hosted.drain()
        refused("DRAINING", stream.receive)


def test_a_block_may_wait_for_its_next_message_longer_than_any_time_out() -> None:
    """A backward pass takes minutes: neither the stall time-out nor keepalive is about a client that computes."""
    with HostedServer(stall_timeout_seconds=0.2, keepalive_seconds=0.3) as hosted, BareClient(hosted.target) as bare:
        bare.create("x", [group(w=[7])], [0.0] * 7)
        with bare.attach("x") as stream:
            stream.send(headed(0, FULL[:3]))
            time.sleep(1.5)
            stream.send(piece(3, FULL[3:]))
            time.sleep(1.5)
            assert answered(stream, headed(0, [], last=True))[1].step == 1
            assert bare.get("x").attached_worker_id == "worker"
