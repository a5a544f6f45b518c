"""Conformance with memory of the host that is pinned, written from and written to, and with what is only looked at."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gradwire.server.devices.base import Device, Write
from gradwire.wire.layout import Range
from tests.reference import ReferenceConfig
from tests.server.devices.harness import SIMULATED, Problem, assert_same_bits, assert_same_state, download, upload

FLOAT32 = np.dtype(np.float32)
LENGTH = 50 if SIMULATED else 300_000
CONFIG = ReferenceConfig(amsgrad=True)


@pytest.fixture
def pinned(device: Device) -> Iterator[np.ndarray[Any, Any]]:
    """``[1, LENGTH]`` in a mapping of its own, as memory that is shared with a client is."""
    memory = np.frombuffer(mmap.mmap(-1, 4 * LENGTH + mmap.PAGESIZE), np.uint8)
    unpin = device.pin(memory)
    yield memory[64 : 64 + 4 * LENGTH].view(FLOAT32)[None]
    unpin()


def test_pinned_memory_is_written_from(device: Device, pinned: np.ndarray[Any, Any]) -> None:
    values = np.random.default_rng(0).standard_normal((1, LENGTH), np.float32)
    pinned[:] = values
    array = device.allocate(2, LENGTH + 3, FLOAT32)
    device.write(array, 2, pinned)
    device.write(array, 0, pinned[:, :1])
    pinned[:] = 0  # what has been written is the device's
    expected = np.zeros((2, LENGTH + 3), np.float32)
    expected[0, 2:-1], expected[0, 0] = values[0], values[0, 0]
    assert_same_bits(download(device, array), expected)


def test_pinned_memory_of_another_type_is_converted(device: Device, pinned: np.ndarray[Any, Any]) -> None:
    pinned[:] = 1 / 3
    array = device.allocate(1, LENGTH, np.dtype(np.float64))
    device.write(array, 0, pinned)
    assert_same_bits(download(device, array), pinned.astype(np.float64))


@pytest.mark.parametrize("cuts", [(), (7, 20)], ids=["whole", "absent"])
def test_last_parameters_go_to_pinned_memory(
    device: Device, pinned: np.ndarray[Any, Any], cuts: tuple[int, ...]
) -> None:
    """Of elements that are updated, and of no others."""
    out = device.as_output(pinned)
    assert out is not None
    problem = Problem(LENGTH, 2, FLOAT32)
    segments = problem.segments(CONFIG, cuts)
    if cuts:
        del segments[1]
    expected, state = problem.state(device), problem.state(device)
    gradients = upload(device, problem.gradients)
    device.update(expected, gradients, segments)
    pinned[:] = -7
    device.update(state, gradients, segments, out=out, write=Write.LAST)
    assert_same_state(device, state, expected)
    wanted = download(device, expected.params)
    if cuts:
        wanted[:, slice(*cuts)] = -7
    assert_same_bits(pinned, wanted)


def test_memory_may_be_pinned_again(device: Device) -> None:
    memory = np.zeros(3 * mmap.PAGESIZE, np.uint8)
    for _ in range(2):
        unpin = device.pin(memory)
        assert device.as_output(memory.view(FLOAT32)[None]) is not None
        unpin()


def test_who_looks_at_one_part_after_another_sees_what_is_there(device: Device) -> None:
    values = np.random.default_rng(0).standard_normal((2, LENGTH), np.float32)
    array = upload(device, values)
    step = LENGTH // 7
    parts = [Range(start, min(start + step, LENGTH)) for start in range(0, LENGTH, step)]
    for row in range(2):
        for part in parts:
            assert_same_bits(device.peek(array, Range(row, row + 1), part), values[row : row + 1, slice(*part)])
    assert_same_bits(device.peek(array, Range(0, 2), Range(3, 5)), values[:, 3:5])


def test_what_was_looked_at_is_not_shown_again_once_it_has_changed(device: Device) -> None:
    problem = Problem(LENGTH, 1, FLOAT32)
    state = problem.state(device)
    gradients = upload(device, problem.gradients)
    changes: dict[str, Callable[[], object]] = {
        "update": lambda: device.update(state, gradients, problem.segments(CONFIG)),
        "write": lambda: device.write(state.params, LENGTH // 2, np.full((1, 3), 5, np.float32)),
        "copy": lambda: device.copy(gradients, state.params),
        "clip": lambda: device.clip(state.params, [Range(0, LENGTH)], max_value=0.25),
    }
    for name, change in changes.items():
        for part in (Range(0, 10), Range(10, 20), Range(20, LENGTH)):  # the last one may have been fetched ahead
            device.peek(state.params, Range(0, 1), part)
        change()
        for part in (Range(0, 10), Range(20, LENGTH)):
            found = device.peek(state.params, Range(0, 1), part)
            assert np.array_equal(found, device.read(state.params, Range(0, 1), part)), name


def test_trajectories_and_targets_that_change_are_not_shown_as_they_were(device: Device) -> None:
    problem = Problem(LENGTH, 2, FLOAT32)
    state, target = problem.state(device), problem.state(device)
    gradients = upload(device, problem.gradients)
    out = device.allocate(2, LENGTH, FLOAT32)
    part = Range(1, 9)
    for array in (target.params, out):
        device.peek(array, Range(0, 1), part)
    device.update(state, gradients, problem.segments(CONFIG), target=target, out=out, write=Write.TRAJECTORY)
    for array in (target.params, out):
        found = np.array(device.peek(array, Range(0, 1), part))
        assert_same_bits(found, device.read(array, Range(0, 1), part))
        assert (found != 0).all()
