"""Answers that are one message each, parameters and receipt together.

Of most steps the receipt differs from that of the step before in the step and the norm: only those are set anew.
"""

from __future__ import annotations

from gradwire.server.encodings.encoders import Encoder
from gradwire.server.engine.block import Reply
from gradwire.server.rpc.codec import MOST_BYTES, encode_receipt
from gradwire.v1 import train_pb2
from gradwire.wire.envelope import parameters_response

_RATE_BYTES = 8
"""Of a learning rate in a receipt."""


class WholeAnswers:
    """Of one stream. ``encoder``: of its replies."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._message = train_pb2.Parameters()
        self._made_of: tuple[object, ...] = ()
        """What of ``_message`` is as it was in the last answer."""

    def encode(self, reply: Reply) -> tuple[bytes, int] | None:
        """A serialized TrainResponse, and how many bytes of it are values; None: it is another kind of answer, and
        nothing has happened."""
        receipt, values = reply.receipt, reply.values
        if (
            receipt is None
            or values is None
            or self._encoder.dense is None
            or receipt.skipped_steps
            or receipt.repeated
            or receipt.contribution is not None
            or values.nbytes + _RATE_BYTES * len(receipt.learning_rates) > MOST_BYTES
        ):
            return None
        (part,) = self._encoder.encode(reply)
        sent = self._encoder.take_sent_bytes()
        made_of = receipt.learning_rates, receipt.durability, receipt.received_bytes, sent, reply.offset, len(part.data)
        if made_of != self._made_of:
            self._made_of = made_of
            self._message = train_pb2.Parameters(offset=part.offset, steps=len(part.data))
            encode_receipt(receipt, sent, self._message.receipt)
        message = self._message
        message.sequence = reply.sequence
        message.receipt.step = receipt.step
        message.receipt.gradient_norm = receipt.gradient_norm
        return parameters_response(message, part.data), part.data.nbytes
