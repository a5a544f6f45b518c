"""Conformance of ``Device.square_sums``, from which gradient norms and the finiteness of gradients come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from gradwire.server.devices import chunks
from gradwire.server.devices.base import Device
from gradwire.server.devices.cpu import CpuDevice
from gradwire.wire.layout import Range
from tests.server.devices.harness import FLOATS, SIMULATED, Tensor, upload

each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@pytest.fixture(params=["one chunk", "many chunks"])
def elements(request: pytest.FixtureRequest, device: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A vector's length; the simulator would be too slow for several real chunks."""
    if request.param == "one chunk":
        yield 20 if SIMULATED else 1003
    elif SIMULATED:
        monkeypatch.setattr(chunks, "NORM_CHUNK", 16)
        yield 41
    else:
        yield 200_003


def exact(values: Tensor, ranges: list[Range]) -> float:
    return math.fsum(float(x) * float(x) for part in ranges for x in values[slice(*part)])


def draw(rows: int, length: int, dtype: np.dtype[Any]) -> Tensor:
    return np.random.default_rng(0).normal(size=(rows, length)).astype(dtype)


@each_float
def test_agrees_with_the_exact_sum(device: Device, elements: int, dtype: np.dtype[Any]) -> None:
    values = draw(3, elements, dtype)
    whole = [Range(0, elements)]
    found = device.square_sums(upload(device, values), 1, whole)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [exact(row, whole) for row in values[1:]], rtol=1e-12, atol=0)


@each_float
def test_leaves_out_absent_ranges(device: Device, elements: int, dtype: np.dtype[Any]) -> None:
    """What lies in absent ranges does not matter, not even NaN."""
    values = draw(1, elements, dtype)
    third = elements // 3
    present = [Range(0, third), Range(third + 1, 2 * third), Range(2 * third + 2, elements - 1)]
    values[0, [third, 2 * third, 2 * third + 1, -1]] = np.nan
    array = upload(device, values)
    np.testing.assert_allclose(device.square_sums(array, 0, present), exact(values[0], present), rtol=1e-12, atol=0)
    assert device.square_sums(array, 0, []).tolist() == [0.0]


def test_does_not_depend_on_how_the_wire_was_cut(device: Device, elements: int) -> None:
    """Neither on the slices nor on the number of rows that are summed at once."""
    values = draw(4, elements, np.dtype(np.float32))
    whole = [Range(0, elements)]
    expected = device.square_sums(upload(device, values), 0, whole)
    sliced = device.allocate(4, elements, values.dtype)
    edges = [0, 1, elements // 7, elements // 2, elements]
    for a, b in reversed(list(pairwise(edges))):
        device.write(sliced, a, values[:, a:b])
    assert device.square_sums(sliced, 0, whole).tolist() == expected.tolist()
    for k in range(4):
        assert device.square_sums(upload(device, values[k : k + 1]), 0, whole).tolist() == [expected[k]]


def test_adds_fixed_chunks_of_the_layout_in_order(device: Device, elements: int) -> None:
    """A range that begins within a chunk does not move the borders of the chunks behind it."""
    chunk = chunks.NORM_CHUNK
    array = upload(device, draw(1, elements, np.dtype(np.float64)))
    edges = [3, *range(chunk, elements, chunk), elements]
    total = 0.0
    for a, b in pairwise(edges):
        total += float(device.square_sums(array, 0, [Range(a, b)])[0])
    assert device.square_sums(array, 0, [Range(3, elements)]).tolist() == [total]


def test_sums_of_slices_are_those_of_the_whole(device: Device, elements: int) -> None:
    """Of slices that are cut where chunks are; each in an array of its own."""
    chunk = chunks.NORM_CHUNK
    values = draw(3, elements, np.dtype(np.float32))
    expected = device.chunk_sums(upload(device, values), 1, [Range(0, elements)])
    assert expected.shape == (-(-elements // chunk), 2)
    for first in range(0, elements, 2 * chunk):
        part = Range(first, min(first + 2 * chunk, elements))
        found = device.chunk_sums(device.stage(values[:, slice(*part)], values.dtype), 1, [part], first)
        assert found.tolist() == expected[first // chunk :][: len(found)].tolist()


def test_does_not_depend_on_the_number_of_threads() -> None:
    values = draw(2, 300_000, np.dtype(np.float32))
    ranges = [Range(5, 100_000), Range(100_001, 300_000)]
    sums = []
    for threads in (1, 2, 5):
        cpu = CpuDevice(threads)
        sums.append(cpu.square_sums(values, 0, ranges).tolist())
        cpu.close()
    assert sums[0] == sums[1] == sums[2]


@each_float
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_none_shows(device: Device, elements: int, dtype: np.dtype[Any], bad: float) -> None:
    values = draw(3, elements, dtype)
    array = upload(device, values)
    for position in (0, elements // 2, elements - 1):
        spoilt = values[1:2].copy()
        spoilt[0, position] = bad
        rows = upload(device, np.concatenate([values[:1], spoilt, values[2:]]))
        assert np.isfinite(device.square_sums(rows, 0, [Range(0, elements)])).tolist() == [True, False, True]
    assert np.isfinite(device.square_sums(array, 0, [Range(0, elements)])).all()


def test_squares_of_float32_cannot_overflow(device: Device, elements: int) -> None:
    largest = np.finfo(np.float32).max
    values = np.full((1, elements), largest, np.float32)
    found = device.square_sums(upload(device, values), 0, [Range(0, elements)])
    np.testing.assert_allclose(found, elements * float(largest) ** 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("part", "elements", "count"),
    [
        ((0, 0), 0, 0),
        ((0, 5), 5, 1),
        ((0, 5), 6, 0),
        ((1, 5), 5, 0),
        ((0, 65_536), 65_536, 1),
        ((0, 65_537), 65_537, 2),
        ((65_536, 131_072), 131_072, 1),
        ((65_535, 131_072), 131_072, 1),
        ((65_537, 131_071), 131_072, 0),
        ((131_072, 131_073), 131_073, 1),
        ((131_072, 131_072), 131_073, 0),
    ],
)
def test_which_chunks_lie_in_a_part(part: tuple[int, int], elements: int, count: int) -> None:
    first, stop = chunks.whole_chunks(Range(*part), elements)
    assert max(stop - first, 0) == count
    if count:
        assert first * chunks.NORM_CHUNK >= part[0]
        assert min(stop * chunks.NORM_CHUNK, elements) <= part[1]
