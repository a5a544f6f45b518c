"""Conformance of ``Device.update``: blocks, targets, masks, what is written where, and numbers that are none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gradwire.server.devices.base import Device, State, Write
from gradwire.server.devices.cpu import CpuDevice
from tests.reference import ReferenceConfig
from tests.server.devices.harness import (
    FLOATS,
    KERNEL_CONFIGS,
    Config,
    Problem,
    assert_same_bits,
    assert_same_state,
    download,
    download_state,
    segment,
    upload,
)
from tests.server.devices.reference_device import ReferenceDevice

FLOAT32 = np.dtype(np.float32)
each_config = pytest.mark.parametrize("config", KERNEL_CONFIGS, ids=str)
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def committed(device: Device, problem: Problem, config: Config, **options: Any) -> State:
    """The state after the problem's block."""
    state = problem.state(device)
    device.update(state, upload(device, problem.gradients), problem.segments(config), **options)
    return state


def singles(device: Device, problem: Problem, config: Config) -> State:
    """The state after the problem's steps one by one."""
    state = problem.state(device)
    for k in range(problem.steps):
        (whole,) = problem.segments(config)
        one = whole._replace(varying=whole.varying[k : k + 1])
        device.update(state, upload(device, problem.gradients[k : k + 1]), [one])
    return state


@each_config
@each_float
def test_result_is_the_reference_device_s_bit_for_bit(
    device: Device, length: int, config: Config, dtype: np.dtype[Any]
) -> None:
    problem = Problem(length, 3, dtype)
    expected = download_state(ReferenceDevice(), committed(ReferenceDevice(), problem, config))
    actual = download_state(device, committed(device, problem, config))
    for name, value in expected.items():
        assert_same_bits(actual[name], value)


@each_config
@pytest.mark.parametrize("steps", [2, 7])
def test_block_equals_single_steps_bit_for_bit(device: Device, length: int, config: Config, steps: int) -> None:
    problem = Problem(length, steps, FLOAT32)
    assert_same_state(device, committed(device, problem, config), singles(device, problem, config))


def test_block_equals_single_steps_in_float64(device: Device, length: int) -> None:
    problem = Problem(length, 7, np.dtype(np.float64))
    for config in KERNEL_CONFIGS:
        assert_same_state(device, committed(device, problem, config), singles(device, problem, config))


@each_config
@pytest.mark.parametrize("steps", [1, 3])
def test_a_target_receives_what_the_state_would_become(device: Device, length: int, config: Config, steps: int) -> None:
    """The state stays as it is, and what the target held before does not matter."""
    problem = Problem(length, steps, FLOAT32)
    state, target = problem.state(device), Problem(length, 1, FLOAT32, seed=1).state(device)
    out = device.allocate(1, length, FLOAT32)
    gradients = upload(device, problem.gradients)
    device.update(state, gradients, problem.segments(config), target=target, out=out, write=Write.LAST)
    assert_same_state(device, state, problem.state(device))
    expected = committed(device, problem, config)
    for name in ("params", *segment(config, 0, 1, FLOAT32).kernel.used_slots):
        assert_same_bits(download_state(device, target)[name], download_state(device, expected)[name])
    assert_same_bits(download(device, out)[0], download(device, expected.params)[0])


def test_slices_into_a_target_equal_the_whole(device: Device, length: int) -> None:
    """Each slice of gradients in an array of its own, as the server computes one slice after another."""
    config = KERNEL_CONFIGS[1]
    problem = Problem(length, 2, FLOAT32)
    state, target = problem.state(device), Problem(length, 1, FLOAT32, seed=1).state(device)
    expected = committed(device, problem, config)
    for part in problem.segments(config, cuts=(1, length // 3, length // 3 + 1, length - 2)):
        gradients = device.stage(problem.gradients[:, part.start : part.stop], FLOAT32)
        out = device.allocate(1, part.stop - part.start, FLOAT32)
        options: dict[str, Any] = {"target": target, "start": part.start, "out_start": part.start}
        device.update(state, gradients, [part], out=out, write=Write.LAST, **options)
        assert_same_bits(download(device, out)[0], download(device, expected.params)[0, part.start : part.stop])
    for name in ("params", *segment(config, 0, 1, FLOAT32).kernel.used_slots):
        assert_same_bits(download_state(device, target)[name], download_state(device, expected)[name])
    assert_same_state(device, state, problem.state(device))


def test_gradients_of_a_part_update_that_part_in_place(device: Device, length: int) -> None:
    config = KERNEL_CONFIGS[1]
    problem = Problem(length, 2, FLOAT32)
    state, start, stop = problem.state(device), length // 3, length - 1
    part = problem.segments(config)[0]._replace(start=start, stop=stop)
    device.update(state, device.stage(problem.gradients[:, start:stop], FLOAT32), [part], start=start)
    expected = problem.state(device)
    device.update(expected, upload(device, problem.gradients), [part])
    assert_same_state(device, state, expected)


def test_segments_of_different_groups_in_one_call(device: Device, length: int) -> None:
    """Other kernels, other slots, other scalars; elements between segments keep their values."""
    problem = Problem(length, 2, FLOAT32)
    state = problem.state(device)
    cut = length // 2
    parts = [
        segment(KERNEL_CONFIGS[2], 0, cut - 3, FLOAT32, steps=2),
        segment(KERNEL_CONFIGS[1], cut, length, FLOAT32, t=9, steps=2),
    ]
    device.update(state, upload(device, problem.gradients), parts)
    expected = problem.state(ReferenceDevice())
    ReferenceDevice().update(expected, problem.gradients, parts)
    actual = download_state(device, state)
    for name, value in download_state(ReferenceDevice(), expected).items():
        assert_same_bits(actual[name], value)
    assert_same_bits(actual["params"][cut - 3 : cut], problem.params[cut - 3 : cut])
    assert_same_bits(actual["max_exp_avg_sq"][:cut], problem.slots["max_exp_avg_sq"][:cut])


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("size", [1023, 1024, 1025, 6000])
def test_splitting_over_threads_and_tiles_changes_no_bit(threads: int, size: int) -> None:
    problem = Problem(size, 3, FLOAT32)
    one, many = CpuDevice(1), CpuDevice(threads)
    for config in KERNEL_CONFIGS[:2]:
        assert_same_state(one, committed(many, problem, config), committed(one, problem, config))
        assert_same_state(one, committed(one, problem, config), committed(ReferenceDevice(), problem, config))
    many.close()


@pytest.mark.parametrize("write", Write)
def test_rows_that_do_not_apply_are_left_out(device: Device, length: int, write: Write) -> None:
    """They take no scalars either; LAST and TRAJECTORY show the parameters as they were."""
    config = KERNEL_CONFIGS[1]
    applied = np.array([False, True, False, True, True])
    problem = Problem(length, 5, FLOAT32)
    state = problem.state(device)
    whole = segment(config, 0, length, FLOAT32, steps=3)
    out = device.allocate(5, length, FLOAT32)
    gradients = upload(device, problem.gradients)
    device.update(state, gradients, [whole], applied=applied, out=out, write=write)

    expected = problem.state(device)
    trajectory = device.allocate(3, length, FLOAT32)
    kept = upload(device, problem.gradients[applied])
    device.update(expected, kept, [whole], out=trajectory, write=Write.TRAJECTORY)
    assert_same_state(device, state, expected)
    first, second, third = download(device, trajectory)
    zeros = np.zeros_like(first)
    rows = {
        Write.NOTHING: [zeros] * 5,
        Write.LAST: [third, *[zeros] * 4],
        Write.TRAJECTORY: [problem.params, first, first, second, third],
    }
    assert_same_bits(download(device, out), np.stack(rows[write]))


@pytest.mark.parametrize("in_place", [True, False])
def test_block_of_which_no_row_applies_changes_nothing(device: Device, length: int, in_place: bool) -> None:
    problem = Problem(length, 2, FLOAT32)
    state, other = problem.state(device), Problem(length, 1, FLOAT32, seed=1).state(device)
    target = None if in_place else other
    none = segment(KERNEL_CONFIGS[0], 0, length, FLOAT32, steps=0)
    out = device.allocate(1, length, FLOAT32)
    applied = np.zeros(2, np.bool_)
    gradients = upload(device, problem.gradients)
    device.update(state, gradients, [none], target=target, applied=applied, out=out, write=Write.LAST)
    assert_same_state(device, state, problem.state(device))
    for name in ("params", *none.kernel.used_slots) if target is not None else ():
        assert_same_bits(download_state(device, other)[name], download_state(device, state)[name])
    assert_same_bits(download(device, out)[0], problem.params)


@pytest.mark.parametrize("in_place", [True, False])
def test_trajectory_holds_the_parameters_after_each_step(device: Device, length: int, in_place: bool) -> None:
    """Of a part of the vector, into an array that begins before it."""
    config = KERNEL_CONFIGS[3]
    problem = Problem(length, 4, FLOAT32)
    start, stop, out_start = length // 2, length - 1, length // 3
    part = problem.segments(config)[0]._replace(start=start, stop=stop)
    out = upload(device, np.full((4, length - out_start), 7.0, FLOAT32))
    gradients = upload(device, problem.gradients)
    target = None if in_place else Problem(length, 1, FLOAT32, seed=1).state(device)
    options = {"target": target, "out": out, "out_start": out_start, "write": Write.TRAJECTORY}
    device.update(problem.state(device), gradients, [part], **options)

    rows = download(device, out)
    for k in range(4):
        shorter = problem.state(device)
        rest = part._replace(varying=part.varying[: k + 1])
        device.update(shorter, upload(device, problem.gradients[: k + 1]), [rest])
        assert_same_bits(rows[k, start - out_start : stop - out_start], download(device, shorter.params)[0, start:stop])
    rows[:, start - out_start : stop - out_start] = 7.0
    assert (rows == 7.0).all(), "wrote outside its segment"


@each_float
def test_nan_propagates_through_maximum_and_clamp(device: Device, dtype: np.dtype[Any]) -> None:
    """torch's max and clamp do so; a comparison written the other way round would hide a diverged run."""
    config = ReferenceConfig(amsgrad=True, bounds=(-1.0, 1.0))
    zeros = {name: upload(device, np.zeros((1, 3), dtype)) for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")}
    state = State(upload(device, np.array([[0.5, np.nan, 0.5]], dtype)), zeros)
    for row in ([np.nan, 1.0, 1.0], [1.0, 1.0, 1.0]):
        device.update(state, upload(device, np.array([row], dtype)), [segment(config, 0, 3, dtype)])
    found = download_state(device, state)
    assert np.isnan(found["params"]).tolist() == [True, True, False]
    assert np.isnan(found["max_exp_avg_sq"]).tolist() == [True, False, False]


@each_config
@each_float
def test_infinities_and_nan_give_what_the_formulas_give(device: Device, config: Config, dtype: np.dtype[Any]) -> None:
    largest = float(np.finfo(dtype).max)
    special = [np.nan, np.inf, -np.inf, largest, -largest, np.sqrt(largest) * 2, 0.0, -0.0, 1.0]
    problem = Problem(len(special), 2, dtype)
    problem.gradients[0] = special
    problem.params[:3] = [np.inf, -np.inf, np.nan]
    expected = download_state(ReferenceDevice(), committed(ReferenceDevice(), problem, config))
    actual = download_state(device, committed(device, problem, config))
    for name, value in expected.items():
        assert_same_bits(actual[name], value)


@each_config
@each_float
def test_subnormals_are_kept_and_zeros_keep_their_sign(device: Device, config: Config, dtype: np.dtype[Any]) -> None:
    tiny = float(np.finfo(dtype).smallest_normal)
    values = np.array([0.0, -0.0, tiny / 2, -tiny / 4, tiny, 3 * tiny], dtype)
    problem = Problem(values.size**2, 1, dtype)
    problem.params[:] = np.repeat(values, values.size)
    problem.gradients[:] = np.tile(values, values.size)
    for value in problem.slots.values():
        value[:] = 0
    expected = download_state(ReferenceDevice(), committed(ReferenceDevice(), problem, config))
    actual = download_state(device, committed(device, problem, config))
    for name, value in expected.items():
        assert_same_bits(actual[name], value)
    used = segment(config, 0, 1, dtype).kernel.used_slots
    if "sum" in used:
        return  # the square of such a number is 0, and what is divided by the root of that is no such number
    moments = np.abs(actual["exp_avg" if "exp_avg" in used else "params"])
    assert ((moments > 0) & (moments < tiny)).any(), "no subnormal was there to be lost"


def test_nothing_to_update(device: Device) -> None:
    """A run of tensors without elements, a segment without elements, and no segment at all."""
    state = device.allocate_state(("exp_avg", "exp_avg_sq"), 0, FLOAT32)
    gradients = device.allocate(1, 0, FLOAT32)
    device.update(state, gradients, [])
    device.update(state, gradients, [segment(ReferenceConfig(), 0, 0, FLOAT32)])
    assert download(device, state.params).shape == (1, 0)


def test_warm_up_of_every_kernel(device: Device) -> None:
    device.warm_up([(segment(config, 0, 1, dtype).kernel, dtype) for config in KERNEL_CONFIGS for dtype in FLOATS])


def test_threads_may_update_different_states_at_once(device: Device, length: int) -> None:
    config = KERNEL_CONFIGS[1]
    problems = [Problem(length, 2, FLOAT32, seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        states = list(pool.map(lambda problem: committed(device, problem, config), problems))
    for problem, state in zip(problems, states, strict=True):
        assert_same_state(device, state, committed(device, problem, config))
