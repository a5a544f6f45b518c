"""Promise: a step is applied to all parameters or to none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.errors import GradwireError, IncompleteValues, InvalidSlice, NonFiniteGradient, ProtocolViolation
from tests.faults.bare import (
    BareStream,
    Floats,
    Stub,
    attach_when_free,
    create,
    fingerprint,
    fresh_name,
    spec_of,
    write_parameters,
)
from tests.faults.client_process import ClientProcess
from tests.faults.gated import gradient
from tests.serving import ServerProcess

SIZE = 100_000
HALF = SIZE // 2

RETURNS = [train_pb2.RETURNS_LAST, train_pb2.RETURNS_TRAJECTORY, train_pb2.RETURNS_NONE]
OVERRIDES = [run_pb2.Override(group=0, lr=0.5, beta1=0.1, beta2=0.2, eps=1e-3, weight_decay=0.01, low=-3, high=3)]

Send = Callable[[BareStream, Floats], None]


def with_bad_value(value: float) -> Send:
    """The last element of the last slice is not finite; the slice before it is good."""

    def send(stream: BareStream, rest: Floats) -> None:
        rest[-1, -1] = value
        stream.send(2, rest, start=HALF)

    return send


def incomplete(stream: BareStream, rest: Floats) -> None:
    stream.send(2, rest[:, :-1], start=HALF)


def overlapping(stream: BareStream, rest: Floats) -> None:
    stream.send(2, rest, start=HALF - 1)


def outside(stream: BareStream, rest: Floats) -> None:
    stream.send(2, rest, start=HALF + 1)


def with_half_an_element(stream: BareStream, rest: Floats) -> None:
    stream.send_message(train_pb2.Gradients(sequence=2, offset=HALF, data=rest.tobytes()[:-2], last=True))


def with_a_second_header(stream: BareStream, rest: Floats) -> None:
    stream.send(2, rest, start=HALF, steps=rest.shape[0])


def of_another_sequence(stream: BareStream, rest: Floats) -> None:
    stream.send(3, rest, start=HALF)


@pytest.mark.parametrize("returns", RETURNS, ids=["last", "trajectory", "none"])
@pytest.mark.parametrize("steps", [1, 3], ids=["one step", "three steps"])
@pytest.mark.parametrize(
    ("finish", "error"),
    [
        pytest.param(with_bad_value(np.nan), NonFiniteGradient, id="NaN"),
        pytest.param(with_bad_value(-np.inf), NonFiniteGradient, id="infinity"),
        pytest.param(incomplete, IncompleteValues, id="incomplete"),
        pytest.param(overlapping, InvalidSlice, id="overlapping"),
        pytest.param(outside, InvalidSlice, id="outside"),
        pytest.param(with_half_an_element, InvalidSlice, id="half an element"),
        pytest.param(with_a_second_header, ProtocolViolation, id="second header"),
        pytest.param(of_another_sequence, ProtocolViolation, id="other sequence"),
    ],
)
def test_promise_2_whole_steps(stub: Stub, returns: Any, steps: int, finish: Send, error: type[GradwireError]) -> None:
    """A block that is refused at its last slice leaves everything as it was, bit by bit, and its number unused."""
    name, twin = fresh_name("whole"), fresh_name("twin")
    blocks = [gradient(SIZE, seed, steps) for seed in (1, 2)]
    for run in (name, twin):
        create(stub, spec_of(run, SIZE), gradient(SIZE, 0))
        stream = BareStream(stub, run)
        stream.step(1, blocks[0])
        stream.finish()
    before = fingerprint(stub, name)

    stream = BareStream(stub, name)
    stream.send(2, blocks[1][:, :HALF], last=False, steps=steps, returns=returns, overrides=OVERRIDES)
    if returns != train_pb2.RETURNS_NONE:
        assert stream.receive().data, "the first half is answered before the second has been sent"
    finish(stream, blocks[1][:, HALF:].copy())
    refusal = stream.refusal()
    assert type(refusal) is error
    assert refusal.applied is False
    assert fingerprint(stub, name) == before

    # The same number goes with a good block, and nothing of the refused one is left in the run.
    stream = BareStream(stub, name)
    assert stream.attached.last_sequence == 1
    assert stream.step(2, blocks[1], returns=returns).step == 2 * steps
    stream.finish()
    stream = BareStream(stub, twin)
    stream.step(2, blocks[1], returns=returns)
    stream.finish()
    assert fingerprint(stub, name) == fingerprint(stub, twin)


@pytest.mark.parametrize("policy", [run_pb2.NON_FINITE_POLICY_REJECT, run_pb2.NON_FINITE_POLICY_SKIP])
def test_overrides_take_effect_with_the_commit(stub: Stub, policy: Any) -> None:
    name = fresh_name("overrides")
    create(stub, spec_of(name, 4, policy), np.zeros(4, np.float32))
    before = fingerprint(stub, name)
    stream = BareStream(stub, name)
    stream.send(1, np.ones((1, 2), np.float32), last=False, overrides=OVERRIDES)
    if policy == run_pb2.NON_FINITE_POLICY_REJECT:
        assert stream.receive().data  # computed with the new numbers, which are not the run's yet
    assert fingerprint(stub, name) == before
    stream.send(1, np.ones((1, 2), np.float32), start=2)
    _, receipt = stream.answer()
    assert list(receipt.learning_rates) == [0.5]
    stream.finish()
    spec = run_pb2.RunSpec.FromString(fingerprint(stub, name)["hyperparameters"])
    adam = spec.groups[0].adam
    assert (adam.lr, adam.beta1, adam.beta2, adam.eps, adam.weight_decay) == (0.5, 0.1, 0.2, 1e-3, 0.01)
    assert (adam.low, adam.high) == (-3, 3)


def test_a_write_that_is_not_whole_changes_nothing(stub: Stub) -> None:
    name = fresh_name("half-written")
    create(stub, spec_of(name, SIZE), gradient(SIZE, 0))
    before = fingerprint(stub, name)
    with pytest.raises(Exception, match="ended before all elements had arrived"):
        write_parameters(stub, name, gradient(SIZE, 1)[:-1])
    assert fingerprint(stub, name) == before


def test_a_client_killed_in_the_middle_of_an_upload_leaves_the_last_whole_step(
    process: ServerProcess, stub: Stub
) -> None:
    name = fresh_name("killed")
    create(stub, spec_of(name, SIZE), gradient(SIZE, 0))
    with ClientProcess("half-step", process.target, name, SIZE) as client:
        client.wait_for("half of step 2 is there")
        before = fingerprint(stub, name)
        assert before["step"] == 1
        client.kill()
    attach_when_free(stub, name, "somebody else").finish()
    assert fingerprint(stub, name) == before
