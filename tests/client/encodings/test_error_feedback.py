"""Gradients as INT8: what is lost comes with the next gradient, and a retry sends the same bytes."""

from __future__ import annotations

import threading
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from gradwire.client.encodings.error_feedback import EncodedBlock, ErrorFeedback
from gradwire.wire.encoding import Array
from gradwire.wire.int8 import Blocks, array_of, decode_rows, rows_of
from gradwire.wire.layout import Layout, Range

Floats = npt.NDArray[np.float32]

LAYOUT = Layout([[("w", (700,)), ("none", (0,)), ("b", (3,))]])
BLOCKS = Blocks(LAYOUT)
WHOLE = (Range(0, 703),)


@pytest.fixture
def feedback() -> ErrorFeedback:
    return ErrorFeedback(LAYOUT, BLOCKS)


def gradients(seed: int, steps: int = 1, dtype: Any = np.float32) -> list[Array | None]:
    random = np.random.default_rng(seed)
    return [random.standard_normal((steps, t.size)).astype(dtype) for t in LAYOUT.tensors]


def flat(rows: list[Array | None]) -> Floats:
    return np.concatenate([row for row in rows if row is not None], axis=1).astype(np.float32)


def decoded(block: EncodedBlock, steps: int = 1) -> Floats:
    """What the server will make of a whole block; NaN where nothing was sent."""
    out = np.full((steps, LAYOUT.elements), np.nan, np.float32)
    for index, part in enumerate(block.parts):
        data = array_of(block.data(index).tobytes(), steps)
        assert BLOCKS.part_of(part.start, data.shape[1]) == part
        span = BLOCKS.span(part)
        out[:, part.start : part.stop] = decode_rows(BLOCKS, span, rows_of(data, span))
    return out


def test_what_is_lost_is_added_to_the_next_gradient(feedback: ErrorFeedback) -> None:
    total = np.zeros(703)
    arrived = np.zeros(703)
    for seed in range(50):
        rows = gradients(seed)
        block = feedback.begin(rows, WHOLE, 1)
        arrived += decoded(block)[0]
        total += flat(rows)[0]
        feedback.commit(block)
    assert feedback.residual is not None
    np.testing.assert_allclose(arrived + feedback.residual, total, atol=1e-4)
    # Fifty roundings would leave several times that; what is left is the last one alone.
    assert np.abs(arrived - total).max() < 4.5 / 127


def test_a_block_of_k_steps_is_k_single_steps(feedback: ErrorFeedback) -> None:
    rows = gradients(1, steps=4)
    block = feedback.begin(rows, WHOLE, 4)
    together = decoded(block, 4)
    feedback.commit(block)
    singly = ErrorFeedback(LAYOUT, BLOCKS)
    for step in range(4):
        single = singly.begin([row[step : step + 1] for row in rows if row is not None], WHOLE, 1)
        assert np.array_equal(decoded(single)[0], together[step])
        singly.commit(single)
    assert np.array_equal(singly.residual, feedback.residual)  # type: ignore[arg-type]


def test_the_residual_advances_on_commit_only(feedback: ErrorFeedback) -> None:
    kept: list[Floats | None] = [feedback.residual]
    block = feedback.begin(gradients(1), WHOLE, 1)
    decoded(block)
    kept.append(feedback.residual)
    feedback.commit(block)
    assert kept == [None, None]
    assert feedback.residual is not None
    assert feedback.residual.any()


@pytest.mark.parametrize("sent", [False, True])
def test_a_block_that_is_not_committed_leaves_nothing(feedback: ErrorFeedback, sent: bool) -> None:
    first = feedback.begin(gradients(1), WHOLE, 1)
    decoded(first)
    feedback.commit(first)
    refused = feedback.begin(gradients(2), WHOLE, 1)
    if sent:
        decoded(refused)
    feedback.drop()
    fresh = ErrorFeedback(LAYOUT, BLOCKS).begin(gradients(3), WHOLE, 1)
    assert np.array_equal(decoded(feedback.begin(gradients(3), WHOLE, 1)), decoded(fresh))


def test_a_retry_sends_the_same_bytes_though_the_residual_was_dropped(feedback: ErrorFeedback) -> None:
    first = feedback.begin(gradients(1), WHOLE, 1)
    decoded(first)
    feedback.commit(first)
    block = feedback.begin(gradients(2), WHOLE, 1)
    before = [block.data(index).tobytes() for index in range(len(block.parts))]
    feedback.drop()  # the stream broke, and another one is attached
    assert [block.data(index).tobytes() for index in range(len(block.parts))] == before
    feedback.commit(block)
    assert feedback.residual is block.residual


def test_tensors_that_are_absent_keep_their_residual(feedback: ErrorFeedback) -> None:
    first = feedback.begin(gradients(1), WHOLE, 1)
    decoded(first)
    feedback.commit(first)
    assert feedback.residual is not None
    before = feedback.residual.copy()
    rows = gradients(2)
    rows[2] = None
    second = feedback.begin(rows, LAYOUT.present_ranges({2}), 1)
    decoded(second)
    feedback.commit(second)
    assert np.array_equal(feedback.residual[700:], before[700:])
    assert not np.array_equal(feedback.residual[:700], before[:700])


def test_a_gradient_that_is_not_finite_poisons_no_later_one(feedback: ErrorFeedback) -> None:
    rows = gradients(1)
    assert rows[0] is not None
    rows[0][0, 5] = np.nan
    block = feedback.begin(rows, WHOLE, 1)
    values = decoded(block)[0]
    assert np.isnan(values[:256]).all()
    assert np.isfinite(values[256:]).all()
    feedback.commit(block)
    assert np.isfinite(decoded(feedback.begin(gradients(2), WHOLE, 1))).all()


def test_zeros_are_exact_and_have_no_residual(feedback: ErrorFeedback) -> None:
    block = feedback.begin([np.zeros((1, t.size), np.float32) for t in LAYOUT.tensors], WHOLE, 1)
    assert not decoded(block).any()
    feedback.commit(block)
    assert feedback.residual is not None
    assert not feedback.residual.any()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_gradients_of_other_types_go_as_their_float32(feedback: ErrorFeedback, dtype: Any) -> None:
    rows = gradients(1, dtype=dtype)
    plain = ErrorFeedback(LAYOUT, BLOCKS).begin([None if r is None else r.astype(np.float32) for r in rows], WHOLE, 1)
    assert np.array_equal(decoded(feedback.begin(rows, WHOLE, 1)), decoded(plain))


def test_float64_beyond_float32_s_range_is_not_finite(feedback: ErrorFeedback) -> None:
    rows = gradients(1, dtype=np.float64)
    assert rows[2] is not None
    rows[2][0, 0] = 1e300
    assert np.isnan(decoded(feedback.begin(rows, WHOLE, 1))[0, 700:]).all()


def test_two_threads_that_ask_get_the_same_bytes() -> None:
    """The sending thread of a stream that broke may still be encoding while the next one begins."""
    layout = Layout([[("w", (2_000_000,))]])
    feedback = ErrorFeedback(layout, Blocks(layout))
    first = feedback.begin(
        [np.random.default_rng(0).standard_normal((1, 2_000_000), np.float32)], (Range(0, 2_000_000),), 1
    )
    found: list[list[bytes]] = [[], []]

    def read(which: int) -> None:
        found[which] += [first.data(index).tobytes() for index in range(len(first.parts))]

    threads = [threading.Thread(target=read, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found[0]) > 2
    assert found[0] == found[1]


def test_a_block_is_not_disturbed_by_one_that_was_given_up() -> None:
    """The sending thread of an abandoned stream may still be encoding another block."""
    size = 4_000_000
    layout = Layout([[("w", (size,))]])
    blocks = Blocks(layout)
    rows = [[np.random.default_rng(seed).standard_normal((1, size), np.float32)] for seed in (0, 1)]
    whole = (Range(0, size),)
    alone = ErrorFeedback(layout, blocks).begin(rows[1], whole, 1)
    expected = [alone.data(index).tobytes() for index in range(len(alone.parts))]
    feedback = ErrorFeedback(layout, blocks)
    given_up = feedback.begin(rows[0], whole, 1)
    thread = threading.Thread(target=lambda: [given_up.data(index) for index in range(len(given_up.parts))])
    thread.start()
    block = feedback.begin(rows[1], whole, 1)
    found = [block.data(index).tobytes() for index in range(len(block.parts))]
    thread.join()
    assert found == expected
