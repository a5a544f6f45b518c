"""An answer that is made on the model of the one before says what one that is made anew says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradwire.server.encodings.encoders import DenseEncoder
from gradwire.server.engine.block import BlockHeader, Kind, Outcome, Receipt, Reply, Returns
from gradwire.server.engine.spec import Durability
from gradwire.server.rpc.codec import GradientsDecoder, encode_reply
from gradwire.server.rpc.whole_answer import WholeAnswers
from gradwire.v1 import train_pb2

FLOAT32 = np.dtype(np.float32)
FIRST = Receipt(1, 0.5, (0.1, 0.2), received_bytes=12, durability=Durability.MEMORY)


def values(count: int = 3) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.arange(count, dtype=np.float32)[None]


def made_anew(reply: Reply) -> train_pb2.TrainResponse:
    ((parameters, data),) = encode_reply(reply, DenseEncoder(FLOAT32))
    assert data is not None
    parameters.data = data.tobytes()
    return train_pb2.TrainResponse(parameters=parameters)


def test_each_answer_says_what_its_reply_says() -> None:
    answers = WholeAnswers(DenseEncoder(FLOAT32))
    replies = [
        Reply(1, 0, values(), FIRST),
        Reply(2, 0, values() + 1, FIRST._replace(step=2, gradient_norm=0.25)),
        Reply(3, 0, values(), FIRST._replace(step=3, gradient_norm=0.0)),
        Reply(4, 0, values(), FIRST._replace(step=4, learning_rates=(0.1, 0.3))),
        Reply(5, 0, values(5000), FIRST._replace(step=5, received_bytes=20_000)),
        Reply(6, 4, values(2), FIRST._replace(step=6, durability=Durability.JOURNAL)),
        Reply(7, 0, values().astype(np.float64), FIRST._replace(step=7)),
    ]
    for reply in replies:
        found = answers.encode(reply)
        assert found is not None
        assert train_pb2.TrainResponse.FromString(found[0]) == made_anew(reply)
        assert reply.values is not None
        assert found[1] == 4 * reply.values.size


@pytest.mark.parametrize(
    "reply",
    [
        Reply(1, 0, values()),
        Reply(1, receipt=FIRST),
        Reply(1, 0, values(), FIRST._replace(skipped_steps=(0,))),
        Reply(1, 0, values(), FIRST._replace(repeated=True)),
        Reply(1, 0, values(), FIRST._replace(contribution=Outcome(Kind.ACCEPTED, "", ""))),
        Reply(1, 0, values(2**20), FIRST),
    ],
    ids=["a part", "a receipt alone", "skipped steps", "a repeat", "a contribution", "more than a message holds"],
)
def test_what_is_another_kind_of_answer(reply: Reply) -> None:
    encoder = DenseEncoder(FLOAT32)
    assert WholeAnswers(encoder).encode(reply) is None
    assert encoder.take_sent_bytes() == 0


def gradients(sequence: int, last: bool = True, **header: Any) -> train_pb2.Gradients:
    return train_pb2.Gradients(sequence=sequence, last=last, header=train_pb2.BlockHeader(**header))


def test_a_header_that_is_as_the_last_one_is_the_same_object() -> None:
    decoder = GradientsDecoder()
    first = decoder.decode(gradients(1, steps=2), b"").header
    assert first == BlockHeader(2)
    assert decoder.decode(gradients(2, steps=2), b"1234") == (2, 0, b"1234", True, first)
    assert decoder.decode(gradients(3, steps=2), b"").header is first
    assert decoder.decode(train_pb2.Gradients(sequence=4), b"").header is None
    large = [decoder.decode(gradients(4, steps=2, absent_tensors=range(2000)), b"").header for _ in range(2)]
    assert large[0] == large[1] == BlockHeader(2, absent_tensors=frozenset(range(2000)))
    assert large[0] is not large[1]
    other = decoder.decode(gradients(4, steps=2, returns=train_pb2.RETURNS_NONE), b"").header
    assert other == BlockHeader(2, Returns.NONE)
    deferred = decoder.decode(gradients(5, last=False, steps=2, deferred=True), b"").header
    assert deferred == BlockHeader(2, deferred=True)
    assert decoder.decode(gradients(5, steps=2, deferred=True), b"").header is not deferred
