"""The delivery of one contribution to a shared run: sent exactly once, and its outcome taken."""

from __future__ import annotations

import grpc

from gradwire.client.errors import translate
from gradwire.client.options import OUTCOMES
from gradwire.client.training.attachment import Attachment
from gradwire.client.training.block import Block
from gradwire.client.training.delivery import Delivery
from gradwire.client.training.shared_attachment import SharedAttachment
from gradwire.client.transport.retry import Attempts
from gradwire.client.transport.stream import TrainStream
from gradwire.v1 import train_pb2
from gradwire.wire.errors import Fenced, GradwireError, ProtocolViolation

ACCEPTED = train_pb2.Outcome.KIND_ACCEPTED


class SharedDelivery(Delivery):
    """As `Delivery`, but that the answer comes when a round has closed, and is the whole vector whatever the outcome.

    So parameters that are stale are not read before: the gradient was not computed from those, and says so.
    """

    def __init__(self, block: Block, attachment: SharedAttachment, attempts: Attempts) -> None:
        super().__init__(block, attachment, attempts)
        self._shared = attachment

    def _prepare_for_the_answer(self, stream: TrainStream) -> None:
        self._in_place = stream.memory is not None and stream.memory.in_place

    def _send(self, stream: TrainStream, sequence: int) -> None:
        if stream.attached.waiting_sequence != sequence:  # else it is there, and its answer comes on this stream
            super()._send(stream, sequence)

    def _check(self, receipt: train_pb2.Receipt) -> None:
        if receipt.contribution.kind not in OUTCOMES:
            raise ProtocolViolation(
                f"the server said {receipt.contribution.kind} of what became of a contribution; expected one of the "
                f"outcomes {', '.join(OUTCOMES.values())}",
                applied=None,
            )

    def _was_applied(self, attached: train_pb2.Attached) -> bool:
        return attached.last_accepted_sequence == attached.last_sequence

    def _pause_after(self, error: grpc.RpcError, sequence: int, attached: train_pb2.Attached) -> None:
        self._shared.check()
        refusal = translate(error, self._shared.link.target)
        if isinstance(refusal, Fenced) and refusal.metadata.get("epoch") == str(self._shared.epoch):
            self._shared.contested = True  # no write, which would have raised it
        super()._pause_after(error, sequence, attached)

    def _nothing_is_left(self, refusal: GradwireError, sequence: int) -> bool:
        return refusal.metadata.get("sequence") != str(sequence)  # else its outcome is known there, and was on its way

    def _conclude(self, sequence: int, receipt: train_pb2.Receipt) -> None:
        outcome = receipt.contribution
        if outcome.kind == ACCEPTED:
            self._shared.last_accepted = sequence
        super()._conclude(sequence, receipt)
        self._shared.epoch = max(self._shared.epoch, outcome.epoch)
        self._parameters.epoch = outcome.epoch

    def _lost(self, receipt: train_pb2.Receipt) -> bool:
        return super()._lost(receipt) or receipt.contribution.kind != ACCEPTED


def delivery_of(block: Block, attachment: Attachment, attempts: Attempts) -> Delivery:
    """As the run needs it."""
    if isinstance(attachment, SharedAttachment):
        return SharedDelivery(block, attachment, attempts)
    return Delivery(block, attachment, attempts)
