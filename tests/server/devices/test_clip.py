"""Conformance of ``Device.clip``: a clamp and a factor for each row, in place, in the present ranges only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradwire.server.devices.base import Device
from gradwire.server.devices.cpu import CpuDevice
from gradwire.wire.layout import Range
from tests.server.devices.harness import FLOATS, Tensor, assert_same_bits, download, upload

each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def clipped(device: Device, values: Tensor, *ranges: Range, **options: Any) -> Tensor:
    array = upload(device, values)
    device.clip(array, ranges or (Range(0, values.shape[1]),), **options)
    return download(device, array)


def draw(rows: int, length: int, dtype: np.dtype[Any]) -> Tensor:
    return np.random.default_rng(0).normal(size=(rows, length)).astype(dtype)


@each_float
def test_clamp_of_numbers_and_of_what_is_none(device: Device, dtype: np.dtype[Any]) -> None:
    above = float(np.nextafter(dtype.type(2), dtype.type(3)))
    tiny = float(np.finfo(dtype).smallest_subnormal)
    largest = float(np.finfo(dtype).max)
    values = np.array([[np.nan, np.inf, -np.inf, largest, -largest, above, -above, 2, -2, 0.0, -0.0, tiny, -1]], dtype)
    expected = np.array([[np.nan, 2, -2, 2, -2, 2, -2, 2, -2, 0.0, -0.0, tiny, -1]], dtype)
    assert_same_bits(clipped(device, values, max_value=2.0), expected)
    assert_same_bits(clipped(device, values, max_value=np.inf), values)


@each_float
def test_clamp_to_nothing(device: Device, dtype: np.dtype[Any]) -> None:
    found = clipped(device, np.array([[5, -5, 0, np.inf, np.nan]], dtype), max_value=0.0)
    np.testing.assert_array_equal(found, [[0, 0, 0, 0, np.nan]])


@each_float
def test_each_row_has_a_factor_of_its_own(device: Device, length: int, dtype: np.dtype[Any]) -> None:
    values = draw(4, length, dtype)
    values[:, 0] = np.inf
    factors = np.array([1, 0.3, 0, np.nan], dtype)
    found = clipped(device, values, factors=factors)
    assert_same_bits(found[0], values[0])
    assert_same_bits(found[1], dtype.type(0.3) * values[1])
    assert np.isnan(found[2, 0]), "0 times infinity"
    assert (found[2, 1:] == 0).all()
    assert np.isnan(found[3]).all()


@each_float
def test_factors_of_one_change_no_bit(device: Device, dtype: np.dtype[Any]) -> None:
    values = np.array([[np.nan, np.inf, 0.0, -0.0, np.finfo(dtype).smallest_subnormal, 0.1]] * 2, dtype)
    assert_same_bits(clipped(device, values, factors=np.ones(2, dtype)), values)
    assert_same_bits(clipped(device, values, factors=np.array([1, 0.5], dtype))[0], values[0])
    assert_same_bits(clipped(device, values), values)


@each_float
def test_the_clamp_comes_first(device: Device, dtype: np.dtype[Any]) -> None:
    values = np.array([[3.0, -1.0], [8.0, -8.0]], dtype)
    found = clipped(device, values, max_value=2.0, factors=np.array([0.5, 0.25], dtype))
    assert_same_bits(found, np.array([[1.0, -0.5], [0.5, -0.5]], dtype))


def test_absent_elements_stay(device: Device, length: int) -> None:
    values = draw(3, length, np.dtype(np.float32))
    third = length // 3
    ranges = [Range(1, third), Range(third, third), Range(third + 2, length - 1)]
    values[1, [0, third, third + 1, length - 1]] = [np.nan, np.inf, 99, -99]
    factors = np.array([0.5, 0.25, 1], np.float32)
    found = clipped(device, values, *ranges, max_value=0.5, factors=factors)
    expected = values.copy()
    for start, stop in ranges:
        expected[:, start:stop] = np.clip(values[:, start:stop], -0.5, 0.5) * factors[:, None]
    assert_same_bits(found, expected)
    array = upload(device, values)
    device.clip(array, (), max_value=0.5, factors=factors)
    assert_same_bits(download(device, array), values)


@each_float
def test_rows_of_a_block_equal_single_rows(device: Device, length: int, dtype: np.dtype[Any]) -> None:
    values = draw(4, length, dtype)
    factors = np.array([0.7, 1, 1 / 3, 0], dtype)
    block = clipped(device, values, max_value=1.0, factors=factors)
    for k in range(4):
        assert_same_bits(
            block[k : k + 1], clipped(device, values[k : k + 1], max_value=1.0, factors=factors[k : k + 1])
        )


@pytest.mark.parametrize("size", [1023, 1024, 1025, 6000])
def test_splitting_over_threads_changes_no_bit(size: int) -> None:
    values = draw(3, size, np.dtype(np.float32))
    values[:, ::100] = np.inf
    factors = np.array([0.7, 1, 0], np.float32)
    one, many = CpuDevice(1), CpuDevice(3)
    ranges = [Range(3, size // 2), Range(size // 2, size)]
    found = clipped(many, values, *ranges, max_value=1.0, factors=factors)
    assert_same_bits(found, clipped(one, values, *ranges, max_value=1.0, factors=factors))
    assert_same_bits(
        clipped(many, values, *ranges, factors=factors), clipped(one, values, *ranges, factors=factors)
    )  # infinities times zero, in the threads of the pool
    many.close()
