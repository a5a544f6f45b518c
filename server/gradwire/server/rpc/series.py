"""Series and what is logged of them: messages <-> the server's own types."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gradwire.server.series.scalars import Scalar
from gradwire.server.series.series_part import SeriesPart
from gradwire.v1 import service_pb2, train_pb2
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.series import FIELDS, MAX_BUCKETS


def decode_scalars(messages: Iterable[train_pb2.Scalar]) -> tuple[Scalar, ...]:
    """Raises ProtocolViolation. What else may be wrong with them, `check_scalars` says."""
    return tuple([_decode_scalar(message) for message in messages])


def _decode_scalar(message: train_pb2.Scalar) -> Scalar:
    values, rows = message.values, message.block_steps
    if len(values) == 1 and not rows and not message.HasField("buckets"):  # nearly all of them
        return Scalar(message.name, values[0])
    if message.HasField("buckets"):
        columns = [rows, *(getattr(message.buckets, name) for name in FIELDS[1:])]
        lengths = {len(column) for column in columns}
        if values or len(lengths) != 1:
            raise ProtocolViolation(
                f"scalar {message.name!r} has {len(values)} values, and buckets with {sorted(lengths)} entries; "
                "expected values, or buckets all of whose lists have the same length"
            )
        table = np.array(columns, np.float64).reshape(len(FIELDS), -1)
        return Scalar(message.name, table=table, width=message.buckets.bucket_steps)
    if (rows and len(rows) != len(values)) or len(values) > MAX_BUCKETS:
        raise ProtocolViolation(
            f"scalar {message.name!r} has {len(values)} values for {len(rows)} steps; expected at most {MAX_BUCKETS}, "
            "and as many steps or none"
        )
    table = np.empty((len(FIELDS), len(values)))
    table[0], table[1:6], table[6] = rows or range(len(values)), values, 1
    return Scalar(message.name, table=table)


def encode_series(name: str, part: SeriesPart, replaces_from: int = 0) -> service_pb2.Series:
    return service_pb2.Series(
        name=name,
        bucket_steps=part.steps,
        first_step=part.first_step.tolist(),
        first=part.first.tolist(),
        minimum=part.minimum.tolist(),
        maximum=part.maximum.tolist(),
        last=part.last.tolist(),
        total=part.total.tolist(),
        count=part.count.tolist(),
        last_step=max(0, part.last_step),
        replaces_from=replaces_from,
    )
