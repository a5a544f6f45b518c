"""Scalars as messages: what is no scalar is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradwire.server.engine.block import BlockHeader
from gradwire.server.rpc.codec import GradientsDecoder
from gradwire.server.rpc.series import decode_scalars, encode_series
from gradwire.server.series.scalars import Scalar, check_scalars
from gradwire.server.series.series_part import part_of
from gradwire.v1 import train_pb2
from gradwire.wire.errors import ProtocolViolation
from gradwire.wire.series import MAX_BUCKETS, buckets_of

BUCKETS: dict[str, Any] = {"first": [1], "minimum": [1], "maximum": [1], "last": [1], "total": [1], "count": [1]}


def test_values_are_of_the_steps_of_their_block() -> None:
    one, many, some = decode_scalars(
        [
            train_pb2.Scalar(name="one", values=[0.5]),
            train_pb2.Scalar(name="many", values=[1, 2, 3]),
            train_pb2.Scalar(name="some", values=[4, 5], block_steps=[-3, 2]),
        ]
    )
    assert (one.value, one.table) == (0.5, None)
    assert many.table is not None
    assert some.table is not None
    np.testing.assert_array_equal(many.table[:3], [[0, 1, 2], [1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(some.table[0], [-3, 2])
    check_scalars([one, many, some], 3)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"values": [1, 2], "block_steps": [0]},
        {"values": [1], "block_steps": [0, 1]},
        {"values": [1] * (MAX_BUCKETS + 1)},
        {"values": [1], "block_steps": [0], "buckets": BUCKETS | {"bucket_steps": 1}},
        {"block_steps": [0, 1], "buckets": BUCKETS | {"bucket_steps": 1}},
        {"block_steps": [0], "buckets": BUCKETS | {"bucket_steps": 1, "last": []}},
        {"block_steps": [0], "buckets": BUCKETS | {"bucket_steps": 0}},
        {"block_steps": [0], "buckets": BUCKETS | {"bucket_steps": 1, "count": [2**64 - 1]}},
        {"block_steps": [-(2**63)], "values": [1]},
        {"block_steps": [3], "values": [1]},
        {"buckets": {"bucket_steps": 1}},
    ],
)
def test_what_is_no_scalar_is_refused(fields: Any) -> None:
    with pytest.raises(ProtocolViolation, match="loss"):
        check_scalars(decode_scalars([train_pb2.Scalar(name="loss", **fields)]), 3)


def test_a_part_is_told_with_all_its_columns() -> None:
    table, width = buckets_of(np.arange(5000.0), 0)
    found = encode_series("loss", part_of(table, width, 4999), 8)
    assert (found.name, found.bucket_steps, found.last_step, found.replaces_from) == ("loss", 4, 4999, 8)
    columns = [found.first_step, found.first, found.minimum, found.maximum, found.last, found.total, found.count]
    np.testing.assert_array_equal(np.array(columns, np.float64), table)


def test_of_a_header_that_differs_in_what_it_logs_that_alone_is_new() -> None:
    decoder = GradientsDecoder()

    def decoded(*values: float, steps: int = 1, last: bool = True, deferred: bool = False) -> BlockHeader:
        scalars = [train_pb2.Scalar(name="loss", values=[value]) for value in values]
        header = train_pb2.BlockHeader(steps=steps, deferred=deferred, scalars=scalars)
        found = decoder.decode(train_pb2.Gradients(sequence=1, last=last, header=header), b"").header
        assert found is not None
        return found

    silent = decoded()
    assert decoded(0.5) == replace(silent, scalars=(Scalar("loss", 0.5),))
    assert decoded(0.25).scalars == (Scalar("loss", 0.25),)
    assert decoded() is silent
    assert decoded(0.5, steps=2) == BlockHeader(2, scalars=(Scalar("loss", 0.5),))
    assert decoded(0.5, last=False, deferred=True).scalars == (), "before its last message it says nothing"
    assert decoded(0.5, deferred=True).scalars == (Scalar("loss", 0.5),)
