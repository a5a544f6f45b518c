"""The compiled pass does what numpy's passes do, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwire.server import jit
from gradwire.server.encodings.deltas import DeltaBaseline
from gradwire.server.encodings.quantizing import encode_differences, warm_up
from gradwire.server.memory.budget import MemoryBudget
from gradwire.wire.int8 import Blocks, Quantizer, Rows, empty_rows
from gradwire.wire.layout import Layout, Range


def numpy_differences(values: Any, held: Any, blocks: Blocks, rows: Rows) -> None:
    """`encode_differences` in numpy."""
    quantizer = Quantizer()
    with np.errstate(all="ignore"):
        for piece in blocks.pieces(Range(0, blocks.count)):
            shape = piece.number, piece.length
            difference = quantizer.room(piece)
            copy = held[piece.columns].reshape(shape)
            np.subtract(values[piece.columns].reshape(shape), copy, out=difference, casting="same_kind")
            codes = rows.codes[0, piece.columns].reshape(shape)
            copy += quantizer.encode(difference, rows.scales[0, piece.blocks], codes)


@given(
    st.lists(st.sampled_from([1, 3, 64, 255, 256, 257, 700, 70_000]), min_size=1, max_size=5),
    st.integers(0, 2**32),
    st.floats(-44, 37),
    st.sampled_from([np.float32, np.float64]),
)
def test_it_writes_what_numpy_writes(sizes: list[int], seed: int, exponent: float, dtype: Any) -> None:
    layout = Layout([[(f"t{index}", (size,)) for index, size in enumerate(sizes)]])
    blocks, whole = Blocks(layout), Range(0, layout.elements)
    random = np.random.default_rng(seed)
    held = random.standard_normal(layout.elements, np.float32)
    values = held.astype(dtype) + random.standard_normal(layout.elements).astype(dtype) * dtype(10.0**exponent)
    values[random.integers(0, layout.elements, 3)] = held[0]
    ours, theirs = held.copy(), held.copy()
    rows, expected = (empty_rows(1, whole, blocks.span(whole)) for _ in range(2))
    assert encode_differences(values, ours, blocks.boundaries(blocks.span(whole)), rows.scales[0], rows.codes[0])
    numpy_differences(values, theirs, blocks, expected)
    assert np.array_equal(rows.data, expected.data)
    assert np.array_equal(ours.view(np.int32), theirs.view(np.int32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 255, 256, 699])
def test_it_finds_what_is_not_finite(bad: float, where: int) -> None:
    blocks = Blocks(Layout([[("w", (700,))]]))
    values, whole = np.ones(700, np.float32), Range(0, 3)
    values[where] = bad
    rows = empty_rows(1, Range(0, 700), whole)
    held = np.zeros(700, np.float32)
    assert not encode_differences(values, held, blocks.boundaries(whole), rows.scales[0], rows.codes[0])


def test_after_the_warm_up_nothing_is_compiled() -> None:
    warm_up()
    before = jit.compilations()
    blocks = Blocks(Layout([[("w", (700,)), ("b", (3,))]]))
    for dtype in (np.float32, np.float64):
        baseline = DeltaBaseline(blocks, MemoryBudget(2**20), "a baseline")
        params = np.zeros((1, 703), dtype)
        for _ in range(2):
            parts = list(baseline.encode(0, params[0]))
        assert parts[0].delta
        view = params[0, 256:]
        view.flags.writeable = False
        assert next(iter(baseline.encode(256, view))).delta
    assert jit.compilations() == before
