"""What the contract says in words to those who write other clients: what a repeat holds, how a stream is closed."""

from __future__ import annotations

import pytest

from gradwire.v1 import train_pb2
from tests.contract.bare import BareClient, unpack, whole

TRAJECTORY = train_pb2.RETURNS_TRAJECTORY
FULL = [1.0] * 7


def answer_to(bare: BareClient, name: str, *messages: train_pb2.Gradients) -> tuple[list[float], train_pb2.Receipt]:
    """On a stream of its own: all data in order, and the receipt."""
    with bare.attach(name) as stream:
        stream.send(*messages)
        parts = sorted(stream.answer(), key=lambda part: (part.first_step, part.offset))
    receipts = [part.receipt for part in parts if part.HasField("receipt")]
    return [value for part in parts for value in unpack(part.data)], receipts[0]


@pytest.mark.parametrize(
    "question",
    [
        train_pb2.Gradients(sequence=1, last=True),
        whole(1, [*FULL, *FULL], steps=2, returns=TRAJECTORY),
        whole(1, [9.0], steps=1, returns=train_pb2.RETURNS_NONE),
    ],
    ids=["without header and data", "as it was", "another one"],
)
def test_of_an_applied_block_sequence_and_last_count_alone(
    bare: BareClient, name: str, question: train_pb2.Gradients
) -> None:
    first, receipt = answer_to(bare, name, whole(1, [*FULL, *FULL], steps=2, returns=TRAJECTORY))
    again, repeated = answer_to(bare, name, question)
    assert len(first) == 14
    assert again == first
    assert (receipt.repeated, repeated.repeated, repeated.step) == (False, True, 2)


def test_an_unfinished_block_is_dropped_when_the_client_closes_its_side(bare: BareClient, name: str) -> None:
    part = train_pb2.Gradients(sequence=1, data=b"\0" * 8, header=train_pb2.BlockHeader())
    with bare.attach(name) as stream:
        stream.send(part)
        stream.close()
        assert stream.call.code().name == "OK"
    with bare.attach(name) as stream:
        assert (stream.attached.step, stream.attached.last_sequence) == (0, 0)
        assert stream.step(1, FULL)[1].step == 1, "nothing of it is left"


def test_slices_may_be_empty_the_last_one_too(bare: BareClient, name: str) -> None:
    first = train_pb2.Gradients(sequence=1, header=train_pb2.BlockHeader())
    values = whole(1, FULL)
    values.ClearField("header")
    values.last = False
    found, receipt = answer_to(bare, name, first, values, train_pb2.Gradients(sequence=1, last=True))
    assert (len(found), receipt.step) == (7, 1)


def test_the_epoch_says_whether_anybody_came_in_between(bare: BareClient, name: str) -> None:
    with bare.attach(name) as stream:
        stream.step(1, FULL)
        epoch = stream.attached.epoch
    assert bare.get(name).epoch == epoch
    with bare.attach(name) as stream:
        assert stream.attached.epoch == epoch + 1
    with bare.attach(name, "another"):
        pass
    with bare.attach(name) as stream:
        assert stream.attached.epoch == epoch + 3
