"""Deferred blocks, message by message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradwire.v1 import service_pb2, train_pb2
from tests.contract.bare import BareClient, BareStream, pack, unpack

NAN, INF = math.nan, math.inf
ANY: Any = 99  # an enum's number that no version has given a name
FULL = [1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0]
"""A gradient of the run `name`: a [2], b [2, 2], c []."""


def piece(offset: int, values: Sequence[float], *, sequence: int = 1, last: bool = False) -> train_pb2.Gradients:
    """A message without a header."""
    return train_pb2.Gradients(sequence=sequence, offset=offset, data=pack(values), last=last)


def headed(
    offset: int, values: Sequence[float], *, sequence: int = 1, last: bool = False, deferred: bool = True, **header: Any
) -> train_pb2.Gradients:
    """A message with a header: a deferred one of one step, if nothing else is said."""
    message = piece(offset, values, sequence=sequence, last=last)
    message.header.CopyFrom(train_pb2.BlockHeader(deferred=deferred, **{"steps": 1, **header}))
    return message


def answered(
    stream: BareStream, *messages: train_pb2.Gradients
) -> tuple[dict[int, list[float]], train_pb2.Receipt, int]:
    """Sends; the answer as offset -> values, its receipt, and the number of its messages."""
    stream.send(*messages)
    parts = list(stream.answer())
    return {part.offset: unpack(part.data) for part in parts if part.data}, parts[-1].receipt, len(parts)


def outcome(receipt: train_pb2.Receipt) -> train_pb2.Receipt:
    """A receipt without what depends on how the block was sent."""
    plain_receipt = train_pb2.Receipt()
    plain_receipt.CopyFrom(receipt)
    plain_receipt.ClearField("received_bytes")
    plain_receipt.ClearField("sent_bytes")
    return plain_receipt


def whole_state(bare: BareClient, name: str) -> tuple[list[float], list[bytes], list[int]]:
    """Parameters, slots and each tensor's t."""
    header, *parts = bare.call("ReadState", service_pb2.ReadStateRequest(name=f"runs/{name}"))
    return bare.read(name)[1], [part.slice.data for part in parts], list(header.header.tensor_steps)


def plain(bare: BareClient, name: str, *blocks: Sequence[float], **header: Any) -> train_pb2.Receipt:
    """Plain blocks, each in one message; the last receipt."""
    with bare.attach(name) as stream:
        for sequence, values in enumerate(blocks, 1):
            receipt = stream.step(sequence, values, **header)[1]
    return receipt
