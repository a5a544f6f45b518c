"""Conformance of a device's memory: allocate, write, read, copy."""

from __future__ import annotations

import importlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gradwire.server.devices.base import Device
from gradwire.wire.layout import Range
from tests.server.devices.harness import FLOATS, assert_same_bits, download, upload

WIRE = [np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def test_a_copy_may_go_into_an_array_that_is_there(device: Device) -> None:
    source = device.allocate(1, 200_000, np.dtype(np.float32))
    values = np.random.default_rng(0).standard_normal((1, 200_000)).astype(np.float32)
    device.write(source, 0, values)
    target = device.allocate(1, 200_000, np.dtype(np.float32))
    assert device.copy(source, target) is target
    device.write(source, 0, np.zeros_like(values))
    assert np.array_equal(device.read(target, Range(0, 1), Range(0, 200_000)), values)


@each_float
def test_new_array_is_zero(device: Device, dtype: np.dtype[Any]) -> None:
    array = device.allocate(2, 5, dtype)
    assert_same_bits(download(device, array), np.zeros((2, 5), dtype))


@each_float
@pytest.mark.parametrize("wire", WIRE, ids=str)
def test_write_converts_and_touches_only_its_part(device: Device, dtype: np.dtype[Any], wire: np.dtype[Any]) -> None:
    values = np.array([[1 / 3, -0.0, np.inf, np.nan], [-2.5, 1e-7, -np.inf, 3.0]]).astype(wire)
    array = upload(device, np.full((3, 9), 7, dtype))
    device.write(array, 4, values)
    expected = np.full((3, 9), 7, dtype)
    expected[:2, 4:8] = values.astype(dtype)
    assert_same_bits(download(device, array), expected)


def test_write_rounds_to_nearest_even_and_overflows_to_infinity(device: Device) -> None:
    half = 2.0**-24  # half of float32's spacing above 1
    values = np.array([[1 + half, 1 + 3 * half, 1e39, -1e39, 1e-46, 1e-40]])
    found = download(device, upload(device, values, np.dtype(np.float32)))
    spacing = np.float32(2 * half)
    tiny = np.float32(1e-40)
    assert_same_bits(found, np.array([[1, 1 + 2 * spacing, np.inf, -np.inf, 0, tiny]], np.float32))


def test_write_takes_any_strides_and_read_only_memory(device: Device) -> None:
    values = np.arange(12, dtype=np.float32).reshape(6, 2).T[:, ::2]
    values.flags.writeable = False
    assert_same_bits(download(device, upload(device, values)), np.ascontiguousarray(values))


@each_float
def test_read_of_a_part(device: Device, dtype: np.dtype[Any]) -> None:
    values = np.arange(40, dtype=dtype).reshape(4, 10)
    array = upload(device, values)
    assert_same_bits(device.read(array, Range(1, 3), Range(2, 9)), values[1:3, 2:9])
    assert device.read(array, Range(0, 1), Range(3, 3)).shape == (1, 0)


def test_what_was_read_stays_when_the_array_changes(device: Device) -> None:
    array = upload(device, np.ones((2, 4), np.float32))
    before = download(device, array)
    device.write(array, 0, np.zeros((2, 4), np.float32))
    assert (before == 1).all()
    before[:] = 5
    assert (download(device, array) == 0).all()


def test_copy_is_independent(device: Device) -> None:
    array = upload(device, np.ones((2, 4), np.float32))
    copy = device.copy(array)
    device.write(array, 1, np.zeros((1, 2), np.float32))
    assert_same_bits(download(device, copy), np.ones((2, 4), np.float32))
    assert download(device, array)[0].tolist() == [1, 0, 0, 1]


def test_large_copies_pass_through_staging_in_parts(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.name.startswith("cuda"):
        monkeypatch.setattr(importlib.import_module("gradwire.server.devices.cuda"), "STAGING_BYTES", 24)
    values = np.arange(33, dtype=np.float32).reshape(3, 11)
    assert_same_bits(download(device, upload(device, values)), values)
