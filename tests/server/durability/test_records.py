"""Runs as text: the bytes that are stored, and read again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gradwire.server.durability.records import (
    LOG_VERSION,
    block_from_text,
    block_to_text,
    groups_to_data,
    log_from_text,
    log_to_text,
    read_record,
    spec_from_text,
    spec_to_text,
)
from gradwire.server.engine.block import BlockHeader, Receipt
from gradwire.server.engine.spec import Durability, RunSpec
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.series.scalars import Scalar
from gradwire.wire.layout import Layout

GROUPS = (AdamHyperparameters(lr=0.1), AdamHyperparameters(high=2.0, amsgrad=True))


def spec_of(tensors: int) -> RunSpec:
    layout = Layout([[(f"é{index}", (2,) * (index % 3)) for index in range(tensors)], [("last", (0, 4))]])
    return RunSpec("runs/x", layout, np.dtype(np.float64), GROUPS, clip_norm=1e-3, durability=Durability.SNAPSHOT)


@pytest.mark.parametrize("tensors", [1, 1000, 2001])
def test_a_spec_is_one_json_object_and_comes_back(tensors: int) -> None:
    """Byte for byte as older versions have written it."""
    spec = spec_of(tensors)
    text = spec_to_text(spec)
    found: list[list[Any]] = [[], []]
    for tensor in spec.layout.tensors:
        found[tensor.group].append([tensor.name, tensor.shape])
    assert text == json.dumps(
        {
            "name": "runs/x",
            "dtype": "float64",
            "tensors": found,
            "groups": groups_to_data(GROUPS),
            "non_finite_policy": "REJECT",
            "clip_value": None,
            "clip_norm": 1e-3,
            "durability": "SNAPSHOT",
        }
    )
    back = spec_from_text(text)
    assert back.layout.tensors == spec.layout.tensors
    assert (back.name, back.groups, back.clip_norm, back.durability) == ("runs/x", GROUPS, 1e-3, Durability.SNAPSHOT)


@pytest.mark.parametrize("shape", ["[2, true]", "[2.0]", '["2"]', '"ab"', "[null]"])
def test_what_is_no_shape_is_refused(shape: str) -> None:
    text = spec_to_text(spec_of(3)).replace("[2, 2]", shape)
    with pytest.raises(ValueError, match="is no shape"):
        spec_from_text(text)


def test_a_block_without_scalars_has_the_record_that_it_always_had() -> None:
    receipt = Receipt(1, 2.0, (0.1,))
    text = block_to_text(BlockHeader(), receipt)
    assert list(json.loads(text)) == ["steps", "returns", "absent", "overrides", "receipt"]
    with_scalars = BlockHeader(scalars=(Scalar("loss", 0.1),))
    assert block_to_text(with_scalars, receipt).startswith(text[:-1])
    assert block_from_text(block_to_text(with_scalars, receipt))[0] == with_scalars


def test_the_record_of_what_was_logged_is_none_of_a_block() -> None:
    text = log_to_text(3, (Scalar("loss", 0.1),))
    assert log_from_text(text) == (3, (Scalar("loss", 0.1),))
    assert log_from_text(block_to_text(BlockHeader(), Receipt(1, 2.0, (0.1,)))) is None
    assert read_record(text, "it")["version"] == LOG_VERSION
