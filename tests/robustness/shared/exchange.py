"""A contribution on its way to the server, and the answer on its way back."""

from __future__ import annotations

import random

from gradwire.v1 import train_pb2
from tests.contract.bare import BareStream
from tests.robustness.shared import events
from tests.robustness.shared.connection import answer_of, digest_of
from tests.robustness.shared.moments import Moments
from tests.robustness.shared.setting import Sent, Setting, gradient_of

_LARGEST_BYTES = 2**20
"""Of a message."""


class NoAnswer(AssertionError):
    """Raised for messages that are no answer to what was sent; says why."""


def upload(stream: BareStream, setting: Setting, sent: Sent, chance: random.Random, moments: Moments) -> None:
    """Sends it, in one message or in several. Raises Cut."""
    data = gradient_of(setting, sent).tobytes()
    header = train_pb2.BlockHeader(
        absent_tensors=sent.absent(),
        contribution=train_pb2.Contribution(weight=sent.weight, base_step=sent.base_step, base_epoch=sent.base_epoch),
    )
    size = min(max(4, len(data) // chance.choice((1, 1, 2, 5)) // 4 * 4), _LARGEST_BYTES)
    places = range(0, max(len(data), 1), size)
    for place in places:
        stream.send(
            train_pb2.Gradients(
                sequence=sent.sequence,
                offset=place // 4,
                data=data[place : place + size],
                header=header if place == 0 else None,
                last=place == places[-1],
            )
        )
        if place != places[-1]:
            moments.pass_by("uploading")


def receive(
    stream: BareStream, setting: Setting, sent: Sent, attached: train_pb2.Attached, moments: Moments
) -> events.Told:
    """Waits for what became of it. Raises Refusal, NoAnswer, Cut."""
    found, covered = bytearray(4 * setting.elements), 0
    for part in answer_of(stream):
        if part.sequence != sent.sequence:
            raise NoAnswer(f"contribution {sent.sequence} was answered as {part.sequence}")
        found[4 * part.offset : 4 * part.offset + len(part.data)] = part.data
        covered += len(part.data)
        if covered < len(found):
            moments.pass_by("answered in part")
    if covered != len(found) or len(found) != 4 * setting.elements:
        raise NoAnswer(f"an answer has {covered} bytes of parameters; expected {4 * setting.elements}")
    receipt, outcome = part.receipt, part.receipt.contribution
    return events.Told(
        sent.key,
        attached.server_instance,
        attached.run_uid,
        train_pb2.Outcome.Kind.Name(outcome.kind).removeprefix("KIND_"),
        outcome.reason,
        outcome.round,
        outcome.share,
        outcome.contributors,
        outcome.total_weight,
        outcome.staleness,
        receipt.step,
        outcome.epoch,
        digest_of(bytes(found)),
        bool(receipt.skipped_steps),
        receipt.repeated,
    )
