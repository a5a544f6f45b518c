"""Conformance of ``Device.combine``: several gradients become one, whoever came first."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwire.server import jit
from gradwire.server.devices.base import Device
from gradwire.server.devices.chunks import NORM_CHUNK
from gradwire.server.devices.combining import Piece
from gradwire.server.devices.cpu import CpuDevice
from gradwire.wire.layout import Range
from tests.server.devices.harness import FLOATS, SIMULATED, Tensor, assert_same_bits, download, upload
from tests.server.devices.reference_combining import exact, in_float64, magnitude, units_apart

each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)
quick = settings(derandomize=True, database=None, max_examples=15 if SIMULATED else 100, deadline=None)

FLOAT32, FLOAT64 = FLOATS


def draw(count: int, length: int, dtype: np.dtype[Any], seed: int = 0) -> list[Tensor]:
    return list(np.random.default_rng(seed).normal(size=(count, length)).astype(dtype))


def whole(length: int, weights: Sequence[float], divisor: float | None = None) -> list[Piece]:
    """One piece; the divisor's default is that of the mean."""
    return [Piece(Range(0, length), tuple(enumerate(weights)), math.fsum(weights) if divisor is None else divisor)]


def combined(device: Device, values: Sequence[Tensor], pieces: Sequence[Piece], before: float = 7.0) -> Tensor:
    """What becomes of a vector that is full of ``before``."""
    out = upload(device, np.full((1, values[0].size), before, values[0].dtype))
    device.combine(out, [upload(device, value[None]) for value in values], pieces)
    found: Tensor = download(device, out)[0]
    return found


def weights_of(count: int, kind: str) -> list[float]:
    if kind == "equal":
        return [1.0] * count
    random = np.random.default_rng(count)
    drawn = random.integers(1, 300, count) if kind == "counts" else random.lognormal(size=count)
    return [float(weight) for weight in drawn]


@each_float
@pytest.mark.parametrize("kind", ["equal", "counts", "any"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 64])
def test_mean_and_sum_are_those_of_fractions(
    device: Device, length: int, dtype: np.dtype[Any], kind: str, count: int
) -> None:
    values, weights = draw(count, min(length, 300), dtype), weights_of(count, kind)
    for divisor in (math.fsum(weights), 1.0):
        found = combined(device, values, whole(values[0].size, weights, divisor))
        expected = exact(values, weights, divisor)
        if dtype == FLOAT32:  # what float64 loses where terms cancel is nothing to the terms themselves
            lost = count * 2.0**-52 * magnitude(values, weights, divisor)
            assert (np.abs(found - expected.astype(dtype)) <= np.spacing(np.abs(expected.astype(dtype))) + lost).all()
        else:
            assert units_apart(found, expected) <= 2


@each_float
def test_compensation_finds_what_a_plain_sum_loses(device: Device, dtype: np.dtype[Any]) -> None:
    small = 2.0**-30 if dtype == FLOAT32 else 2.0**-60
    values = [np.array([x], dtype) for x in (1.0, small, small, small, -1.0)]
    assert combined(device, values, whole(1, [1.0] * 5, 1.0)).tolist() == [3 * small]
    assert combined(device, values, whole(1, [3.0] * 5, 1.0)).tolist() == [9 * small]


@each_float
@pytest.mark.parametrize("kind", ["equal", "counts", "any"])
def test_all_devices_have_the_same_bits(device: Device, length: int, dtype: np.dtype[Any], kind: str) -> None:
    """Those of the order that the interface gives: so it is neither the device that shows, nor a tile or a thread."""
    for count in (1, 2, 5, 8, 15):
        values, weights = draw(count, length, dtype, count), weights_of(count, kind)
        values[0][:3] = [1e30, -0.0, 1e-40]
        divisor = math.fsum(weights)
        expected = in_float64(values, weights, divisor)
        assert_same_bits(combined(device, values, whole(length, weights)), expected)


@quick
@given(data=st.data(), count=st.integers(1, 64), weight=st.floats(1e-30, 1e30), kind=st.sampled_from(["equal", "any"]))
@each_float
def test_equal_gradients_combine_to_themselves(
    device: Device, dtype: np.dtype[Any], data: st.DataObject, count: int, weight: float, kind: str
) -> None:
    """float32 to the bit, whatever the weights; float64 within one unit where their total is exact."""
    exponents = st.floats(width=32, allow_nan=False, allow_infinity=False)
    if dtype == FLOAT64:
        exponents = st.floats(-1e300, 1e300)
    value = np.array(data.draw(st.lists(exponents, min_size=1, max_size=4)), dtype)
    weights = [1.0] * count if kind == "equal" else weights_of(count, "counts" if dtype == FLOAT64 else "any")
    if dtype == FLOAT32:
        weights = [weight * other for other in weights]
    found = combined(device, [value] * count, whole(value.size, weights))
    if dtype == FLOAT32:
        assert_same_bits(found, value)
    else:
        assert units_apart(found, value) <= 1
        assert_same_bits(np.signbit(found), np.signbit(value))


@quick
@given(data=st.data(), count=st.integers(1, 12))
@each_float
def test_who_came_first_does_not_show(device: Device, dtype: np.dtype[Any], data: st.DataObject, count: int) -> None:
    """Sources may lie in any order: that of the terms counts."""
    values, weights = draw(count, 5, dtype, count), weights_of(count, "any")
    expected = combined(device, values, whole(5, weights))
    order = data.draw(st.permutations(range(count)))
    terms = tuple((order.index(worker), weights[worker]) for worker in range(count))
    found = combined(device, [values[worker] for worker in order], [Piece(Range(0, 5), terms, math.fsum(weights))])
    assert_same_bits(found, expected)


@each_float
def test_each_piece_has_terms_of_its_own_and_the_rest_stays(device: Device, dtype: np.dtype[Any]) -> None:
    length = 40 if SIMULATED else 5000
    values = draw(5, length, dtype)
    a, b, c = length // 4, length // 2, 3 * length // 4
    pieces = [
        Piece(Range(b + 1, c), ((4, 0.5), (1, 2.0), (3, 0.25)), 2.75),
        Piece(Range(0, 1), ((2, 3.0),), 3.0),
        Piece(Range(a, a), ((0, 1.0),), 1.0),
        Piece(Range(1, a), ((0, 1.0), (1, 1.0)), 2.0),
        Piece(Range(c, length - 3), tuple((k, 1.0) for k in range(5)), 5.0),
    ]
    expected = np.full(length, 7, dtype)
    for place, terms, divisor in pieces:
        parts = [values[index][slice(*place)] for index, _ in terms]
        expected[slice(*place)] = in_float64(parts, [weight for _, weight in terms], divisor)
    assert_same_bits(combined(device, values, pieces), expected)
    assert_same_bits(combined(device, values, []), np.full(length, 7, dtype))


@each_float
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_receives_may_be_one_of_the_sources(device: Device, length: int, dtype: np.dtype[Any], which: int) -> None:
    values, weights = draw(3, length, dtype), [1.0, 2.0, 5.0]
    expected = combined(device, values, whole(length, weights))
    arrays = [upload(device, value[None]) for value in values]
    device.peek(arrays[which], Range(0, 1), Range(0, length))  # what a device remembers of it is then no longer so
    device.combine(arrays[which], arrays, whole(length, weights))
    assert_same_bits(device.peek(arrays[which], Range(0, 1), Range(0, length))[0], expected)
    for k in {0, 1, 2} - {which}:
        assert_same_bits(download(device, arrays[k])[0], values[k])


@each_float
@pytest.mark.parametrize("count", [2, 5, 9])
@pytest.mark.parametrize(
    "place", [Range(0, 70), Range(0, NORM_CHUNK + 300), Range(NORM_CHUNK, 9 * NORM_CHUNK + 3)], ids=str
)
def test_sums_of_squares_that_come_with_it_are_those_that_can_be_asked_for(
    place: Range, count: int, dtype: np.dtype[Any]
) -> None:
    device = CpuDevice(2)
    values = draw(count, place.stop + 5, dtype)
    out = np.zeros((1, place.stop + 5), dtype)
    terms = tuple((index, 1.0 + index) for index in range(count))
    sums = device.combine(out, [value[None] for value in values], [Piece(place, terms, 2.5)])
    assert (sums is not None) == (place.stop > NORM_CHUNK), "small ones are not worth the ceremony"
    if sums is not None:
        assert_same_bits(sums, device.chunk_sums(out, 0, [place]))
    device.close()


@each_float
@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 3.0]])
def test_numbers_that_are_none_go_through_as_in_the_plain_sum(
    device: Device, dtype: np.dtype[Any], weights: list[float]
) -> None:
    tiny, huge = float(np.finfo(dtype).smallest_subnormal), float(np.finfo(dtype).max)
    firsts = np.array([np.nan, 1, np.inf, -np.inf, np.inf, 5, -0.0, -0.0, tiny, tiny, 1.5, huge, -huge, huge], dtype)
    others = np.array([1, np.nan, 2, 3, -np.inf, -np.inf, -0.0, 0.0, -tiny, tiny, -1.5, huge, -huge, -huge], dtype)
    with np.errstate(all="ignore"):
        plain = firsts.astype(np.float64) * weights[0] + others.astype(np.float64) * weights[1]
        for divisor in (1.0, sum(weights)):
            expected = (plain / divisor).astype(dtype)
            assert_same_bits(combined(device, [firsts, others], whole(firsts.size, weights, divisor)), expected)


def test_a_sum_that_overflows_on_its_way_stays_infinite(device: Device) -> None:
    """As the plain sum does, and is no NaN, though what is lost at an infinity is none."""
    values = [np.array([x], np.float64) for x in (1e308, 1e308, -1e308, -1e308)]
    assert combined(device, values, whole(1, [1.0] * 4)).tolist() == [math.inf]
    assert combined(device, values, whole(1, [1.0, 2.0, 1.0, 1.0])).tolist() == [math.inf]
    assert math.isnan(combined(device, values[1:3], whole(1, [2.0, 2.0]))[0]), "an infinity less an infinity"
    huge = [np.array([x], np.float64) for x in (2.0**1000, 1.0, -(2.0**1000))]
    assert combined(device, huge, whole(1, [1.0] * 3, 1.0)).tolist() == [1.0]
    assert combined(device, huge, whole(1, [3.0] * 3, 1.0)).tolist() == [0.0], "products that large are not halved"


def test_float32_cannot_overflow_before_it_is_divided(device: Device) -> None:
    huge = np.full(3, np.finfo(np.float32).max)
    assert_same_bits(combined(device, [huge] * 64, whole(3, [1e200] * 64)), huge)
    assert combined(device, [huge] * 2, whole(3, [1.0, 1.0], 1.0)).tolist() == [math.inf] * 3


def test_neither_threads_nor_tiles_show() -> None:
    length = 300_001
    for dtype in FLOATS:
        values = draw(7, length, dtype)
        pieces = [
            Piece(Range(0, 1000), ((1, 1.0), (0, 1.0)), 2.0),
            Piece(Range(1003, 200_000), tuple((k, k + 0.5) for k in range(7)), 24.5),
            Piece(Range(200_000, length), ((3, 1.0), (5, 1.0), (6, 1.0)), 3.0),
        ]
        found = []
        for threads in (1, 2, 5):
            cpu = CpuDevice(threads)
            found.append(combined(cpu, values, pieces))
            cpu.close()
        expected = np.full(length, 7, dtype)
        for place, terms, divisor in pieces:
            parts = [values[index][slice(*place)] for index, _ in terms]
            expected[slice(*place)] = in_float64(parts, [weight for _, weight in terms], divisor)
        for vector in found:
            assert_same_bits(vector, expected)


@each_float
def test_sources_may_be_memory_that_cannot_be_written_to(device: Device, dtype: np.dtype[Any]) -> None:
    """As a message's is."""
    values = draw(2, 9, dtype)
    staged = [device.stage(np.frombuffer(value.tobytes(), dtype)[None], dtype) for value in values]
    out = device.allocate(1, 9, dtype)
    device.combine(out, staged, whole(9, [1.0, 2.0]))
    assert_same_bits(download(device, out)[0], in_float64(values, [1.0, 2.0], 3.0))


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (Piece(Range(2, 6), ((0, 1.0),), 1.0), "elements 2..6 lies elsewhere; expected a range of a vector of 5"),
        (Piece(Range(-1, 3), ((0, 1.0),), 1.0), "elements -1..3 lies elsewhere"),
        (Piece(Range(3, 2), ((0, 1.0),), 1.0), "elements 3..2 lies elsewhere"),
        (Piece(Range(0, 5), (), 1.0), "has no terms; expected at least one"),
        (Piece(Range(0, 5), ((0, 1.0), (2, 1.0)), 2.0), "has the sources (0, 2); there are 2, counted from 0"),
        (Piece(Range(0, 5), ((-1, 1.0),), 1.0), "has the sources (-1,); there are 2"),
        (Piece(Range(0, 5), ((0, 0.0),), 1.0), "has the weights (0.0,); expected numbers above 0"),
        (Piece(Range(0, 5), ((0, 1.0), (1, -1.0)), 1.0), "has the weights (1.0, -1.0)"),
        (Piece(Range(0, 5), ((0, math.inf),), 1.0), "has the weights (inf,)"),
        (Piece(Range(0, 5), ((0, 1.0), (1, math.nan)), 1.0), "has the weights (1.0, nan)"),
        (Piece(Range(0, 5), ((0, 1.0),), 0.0), "has the divisor 0.0; expected a number from 2**-1000 to 2**1000"),
        (Piece(Range(0, 5), ((0, 1.0),), math.nan), "has the divisor nan"),
    ],
)
def test_pieces_that_cannot_be_are_refused_before_anything_is_written(
    device: Device, piece: Piece, message: str
) -> None:
    out = upload(device, np.full((1, 5), 7, np.float32))
    sources = [device.allocate(1, 5, FLOAT32) for _ in range(2)]
    good = Piece(Range(0, 1), ((0, 1.0),), 1.0)
    with pytest.raises(ValueError, match=re.escape(message)):
        device.combine(out, sources, [good, piece])
    assert (download(device, out) == 7).all()


def test_arrays_that_are_not_alike_are_refused(device: Device) -> None:
    out, other = device.allocate(1, 5, FLOAT32), device.allocate(1, 5, FLOAT64)
    with pytest.raises(ValueError, match=r"source 1 has the shape \(1, 5\) and is .*float64; .*float32"):
        device.combine(out, [out, other], whole(5, [1.0]))
    with pytest.raises(ValueError, match=r"source 0 has the shape \(1, 6\)"):
        device.combine(out, [device.allocate(1, 6, FLOAT32)], whole(5, [1.0]))
    with pytest.raises(ValueError, match="has 2 rows; expected 1"):
        device.combine(device.allocate(2, 5, FLOAT32), [], [])


def test_after_the_warm_up_nothing_is_compiled_whatever_the_number_of_workers() -> None:
    cpu = CpuDevice(1)
    for dtype in FLOATS:
        cpu.warm_up_combining(dtype)
    before = jit.compilations()
    for dtype in FLOATS:
        for count in (1, 2, 3, 9, 64):
            combined(cpu, draw(count, 3, dtype), whole(3, weights_of(count, "any")))
    assert jit.compilations() == before


PROGRAM = """
import numpy as np
from gradwire.server import jit
from gradwire.server.devices.cpu import CpuDevice

CpuDevice(1).warm_up_combining(np.dtype(np.float32))
print(jit.compilations())
"""


@pytest.mark.skipif(SIMULATED, reason="a simulator compiles nothing")
def test_second_start_compiles_nothing(tmp_path: Path) -> None:
    for expected in ("1\n", "0\n"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"GRADWIRE_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == (expected, "")
