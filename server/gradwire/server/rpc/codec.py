"""Messages of ``gradwire.v1`` <-> the server's own types."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from gradwire.server.encodings.decoders import BlockDecoder, Decoder, DenseDecoder
from gradwire.server.encodings.encoders import DeltaEncoder, DenseEncoder, Encoder
from gradwire.server.engine.block import (
    BlockHeader,
    Contribution,
    GradientSlice,
    Placed,
    Receipt,
    Reply,
    Returns,
    Waiting,
)
from gradwire.server.engine.features import Feature
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import Durability, NonFinitePolicy, RunSpec
from gradwire.server.memory.shared_memory import SharedMemory, SharedSlice
from gradwire.server.optimizers.base import Hyperparameters
from gradwire.server.rpc.hyperparameters import choice, decode_group, decode_numbers
from gradwire.server.rpc.lanes import Offer
from gradwire.server.rpc.series import decode_scalars
from gradwire.server.rpc.shared_run import decode_shared
from gradwire.v1 import run_pb2, train_pb2
from gradwire.wire.encoding import MAX_ANSWER_BYTES, Array, state_dtype, wire_dtype
from gradwire.wire.envelope import Opened, open_request
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.int8 import Blocks
from gradwire.wire.layout_message import decode_layout
from gradwire.wire.service import MAX_WEIGHT

_MANY_GROUPS = 1000

_KEPT_BYTES = 1024
"""Of a header. What is kept of a stream is not counted in the memory limit."""


def spec_pieces(message: run_pb2.RunSpec) -> int:
    """How many tensors and groups it has; of many groups not all are looked at."""
    groups = len(message.groups)
    return groups if groups > _MANY_GROUPS else groups + sum(len(group.tensors) for group in message.groups)


def decode_spec(message: run_pb2.RunSpec, name: str) -> RunSpec:
    """Args: name: of the run inside. Raises InvalidSpec or InvalidHyperparameter."""
    return RunSpec(
        name=name,
        layout=decode_layout(message.groups),
        dtype=state_dtype(message.dtype),
        groups=_decode_groups(message.groups),
        non_finite_policy=choice(NonFinitePolicy, message.non_finite_policy, "non_finite_policy"),
        clip_value=message.clip_value if message.HasField("clip_value") else None,
        clip_norm=message.clip_norm if message.HasField("clip_norm") else None,
        durability=decode_durability(message.durability),
        ttl_seconds=message.ttl_seconds or None,
        shared=decode_shared(message.shared) if message.HasField("shared") else None,
    )


def durability_of(spec: RunSpec) -> run_pb2.Durability.ValueType:
    """The contract's word for how a run is kept."""
    return int(spec.durability or Durability.MEMORY)  # type: ignore[return-value]


def placements(run: Run) -> list[run_pb2.Placement]:
    """Today one server holds all of a run."""
    return [run_pb2.Placement(address="", offset=0, length=run.spec.layout.elements)]


def decode_request(serialized: Any) -> Opened[train_pb2.TrainRequest]:
    """A message of a Train stream. Raises ProtocolViolation for bytes that are none."""
    try:
        return open_request(serialized)
    except DecodeError as error:
        raise ProtocolViolation(f"a message that is no TrainRequest: {error}") from None


def decode_features(values: Iterable[int]) -> frozenset[Feature]:
    """Those of a client's features that this server knows: a newer client may have others."""
    said = set(values)
    return frozenset(feature for feature in Feature if feature in said)


class GradientsDecoder:
    """Of one stream. A short header that is as the last one is the same object: by that who plans blocks knows it. Of
    one that differs in what it logs, only that is decoded."""

    def __init__(self) -> None:
        self._message: train_pb2.BlockHeader | None = None
        self._last = False
        self._header = BlockHeader()

    def decode(self, message: train_pb2.Gradients, data: bytes | memoryview | SharedSlice) -> GradientSlice:
        """A slice with ``data`` in place of the message's own. Raises ProtocolViolation."""
        last = message.last
        header = self._header_of(message.header, last) if message.HasField("header") else None
        return GradientSlice(message.sequence, message.offset, data, last, header)

    def _header_of(self, header: train_pb2.BlockHeader, last: bool) -> BlockHeader:
        if not (header.scalars and (last or not header.deferred) and header.ByteSize() <= _KEPT_BYTES):
            return self._decoded(header, last)
        silent = train_pb2.BlockHeader()
        silent.CopyFrom(header)
        silent.ClearField("scalars")
        return self._decoded(silent, last).logging(decode_scalars(header.scalars))

    def _decoded(self, header: train_pb2.BlockHeader, last: bool) -> BlockHeader:
        if header != self._message or last is not self._last:
            self._message, self._header = None, _decode_header(header, last)
            if header.ByteSize() <= _KEPT_BYTES:  # a copy: it belongs to a message, which may be large
                self._message, self._last = train_pb2.BlockHeader(), last
                self._message.CopyFrom(header)
        return self._header


def _decode_header(message: train_pb2.BlockHeader, last: bool) -> BlockHeader:
    steps = message.steps or 1
    if message.deferred and not last:
        # A deferred block's other fields count in its last message only; before that they need not even be valid.
        return BlockHeader(steps, overrides=_guessed_numbers(message.overrides), deferred=True)
    returns: Returns = choice(Returns, message.returns, "returns", ProtocolViolation)
    contribution = _decode_contribution(message.contribution) if message.HasField("contribution") else None
    scalars = decode_scalars(message.scalars) if message.scalars else ()
    if not (message.absent_tensors or message.overrides or message.deferred):
        return BlockHeader(steps, returns, contribution=contribution, scalars=scalars)
    return BlockHeader(
        steps,
        returns,
        frozenset(message.absent_tensors),
        decode_numbers(message.overrides),
        message.deferred,
        contribution,
        scalars,
    )


def _decode_contribution(message: train_pb2.Contribution) -> Contribution:
    weight = message.weight if message.HasField("weight") else 1.0
    if not 0 < weight <= MAX_WEIGHT:
        raise ProtocolViolation(
            f"the weight of the contribution is {weight}; expected a finite number > 0, at most {MAX_WEIGHT:g}"
        )
    return Contribution(weight, message.base_step, message.base_epoch)


def encodings_of(attach: train_pb2.Attach, run: Run) -> tuple[Decoder, Encoder]:
    """What reads and writes the data of a stream. Bulk work, with INT8.

    Raises ProtocolViolation for an encoding that is not known.
    """
    int8, dtype = run_pb2.ENCODING_INT8, run.spec.dtype
    gradients, parameters = attach.gradient_encoding, attach.parameter_encoding
    # Both are looked at before anything is made.
    gradient_wire = None if gradients == int8 else wire_dtype(gradients, dtype)
    parameter_wire = None if parameters == int8 else wire_dtype(parameters, dtype)
    blocks = functools.cache(lambda: Blocks(run.spec.layout))
    decoder = BlockDecoder(blocks()) if gradient_wire is None else DenseDecoder(gradient_wire)
    if parameter_wire is None:
        return decoder, DeltaEncoder(blocks(), run.budget, run.spec.name)
    return decoder, DenseEncoder(parameter_wire)


def encoding_names(attach: train_pb2.Attach, run: Run) -> tuple[str, str]:
    """Of the gradients and of the parameters of a stream, for people. They are known ones: see `encodings_of`."""
    gradients, parameters = (
        run_pb2.Encoding.Name(encoding).removeprefix("ENCODING_").lower() if encoding else run.spec.dtype.name
        for encoding in (attach.gradient_encoding, attach.parameter_encoding)
    )
    return gradients, parameters


def _guessed_numbers(overrides: Iterable[run_pb2.Override]) -> dict[int, dict[str, float]]:
    try:
        return decode_numbers(overrides)
    except ProtocolViolation:
        return {}


def encode_reply(reply: Reply, encoder: Encoder) -> Iterator[tuple[train_pb2.Parameters, Array | None]]:
    """Messages, each with the data that it does not hold yet: that is most of what a server sends, and protobuf would
    copy it twice. None: there is none, or it has its place in shared memory."""
    parts = encoder.encode(reply)
    end = len(parts) - 1
    for index, part in enumerate(parts):
        parameters = train_pb2.Parameters(sequence=reply.sequence, offset=part.offset, steps=part.data.shape[0])
        if part.delta is not None:
            parameters.encoding = run_pb2.ENCODING_INT8 if part.delta else run_pb2.ENCODING_FLOAT32
        if index == end and reply.receipt is not None:
            encode_receipt(reply.receipt, encoder.take_sent_bytes(), parameters.receipt)
        yield parameters, part.data
    if not parts:
        parameters = train_pb2.Parameters(sequence=reply.sequence, offset=reply.offset)
        if reply.receipt is not None:
            encode_receipt(reply.receipt, encoder.take_sent_bytes(), parameters.receipt)
        yield parameters, None


MOST_BYTES = MAX_ANSWER_BYTES - 1024
"""Of data and a receipt in one message; the other fields are small."""


def cut(parameters: train_pb2.Parameters, data: Array | None) -> Iterator[tuple[train_pb2.Parameters, Array | None]]:
    """A message as several where it would be larger than `MAX_ANSWER_BYTES`, for a long trajectory or many groups."""
    receipt = parameters.receipt.ByteSize() if parameters.HasField("receipt") else 0
    if data is None or data.nbytes + receipt <= MOST_BYTES:
        yield parameters, data
        return
    rows, length = data.shape
    columns = min(length, MOST_BYTES // data.itemsize)
    together = max(1, MOST_BYTES // (columns * data.itemsize))
    for row in range(0, rows, together):
        for column in range(0, length, columns):
            values = data[row : row + together, column : column + columns]
            piece = train_pb2.Parameters(
                sequence=parameters.sequence,
                offset=parameters.offset + column,
                first_step=row,
                steps=len(values),
                encoding=parameters.encoding,
            )
            yield piece, np.ascontiguousarray(values)
    if receipt:
        yield train_pb2.Parameters(sequence=parameters.sequence, receipt=parameters.receipt), None


def encode_shared(placed: Placed, taken: int) -> train_pb2.SharedData:
    """``taken``: slices of the client's."""
    (position, acknowledge), size_bytes = placed
    return train_pb2.SharedData(position=position, size_bytes=size_bytes, acknowledge=acknowledge, taken=taken)


def encode_waiting(waiting: Waiting) -> bytes:
    """A serialized TrainResponse."""
    message = train_pb2.Waiting(reason=waiting.reason, since_seconds=waiting.since_seconds)
    return train_pb2.TrainResponse(waiting=message).SerializeToString()


def encode_taken(slices: int) -> bytes:
    """A serialized TrainResponse."""
    return train_pb2.TrainResponse(taken=train_pb2.Taken(slices=slices)).SerializeToString()


def encode_lane(offer: Offer) -> train_pb2.Lane:
    """Where the client finds a lane."""
    return train_pb2.Lane(path=offer.path, nonce=offer.nonce)


def encode_region(memory: SharedMemory) -> train_pb2.SharedRegion:
    """Where the client finds the memory."""
    return train_pb2.SharedRegion(
        pid=os.getpid(),
        file_descriptor=memory.file_descriptor,
        nonce=memory.nonce,
        gradient_offset=memory.gradient_offset,
        gradient_bytes=memory.gradient_bytes,
        parameter_offset=memory.parameter_offset,
        parameter_bytes=memory.parameter_bytes,
    )


def encode_receipt(receipt: Receipt, sent_bytes: int, message: train_pb2.Receipt) -> None:
    """Into ``message``, which is empty."""
    message.step = receipt.step
    message.gradient_norm = receipt.gradient_norm
    message.learning_rates.extend(receipt.learning_rates)
    message.durability = int(receipt.durability)  # type: ignore[assignment]
    message.received_bytes = receipt.received_bytes
    message.sent_bytes = sent_bytes
    if receipt.skipped_steps:
        message.skipped_steps.extend(receipt.skipped_steps)
    if receipt.repeated:
        message.repeated = True
    if receipt.contribution is not None:
        outcome = receipt.contribution
        message.contribution.CopyFrom(
            train_pb2.Outcome(
                kind=int(outcome.kind),  # type: ignore[arg-type]
                reason=outcome.reason,
                message=outcome.message,
                round=outcome.round,
                share=outcome.share,
                contributors=outcome.contributors,
                total_weight=outcome.total_weight,
                staleness=outcome.staleness,
                epoch=receipt.epoch,
            )
        )


def decode_durability(value: int) -> Durability | None:
    """None: not set. Raises InvalidSpec."""
    found: Durability | None = choice(Durability, value, "durability") if value else None
    return found


def _decode_groups(messages: Iterable[run_pb2.Group]) -> tuple[Hyperparameters, ...]:
    """Groups of the same numbers are one object, and what is computed of it is computed once."""
    known: dict[tuple[str | None, bytes], Hyperparameters] = {}
    groups = []
    for index, message in enumerate(messages):
        name = message.WhichOneof("optimizer")
        key = name, b"" if name is None else getattr(message, name).SerializeToString()
        if key not in known:
            known[key] = decode_group(index, message)
        groups.append(known[key])
    return tuple(groups)
