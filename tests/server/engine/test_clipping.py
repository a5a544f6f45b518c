"""What a run's spec accepts as clipping, and the numbers that clipping multiplies with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.engine.clipping import clip, norm_factors
from gradwire.server.engine.run import Run
from gradwire.server.engine.spec import NonFinitePolicy, RunSpec
from gradwire.server.memory.budget import MemoryBudget
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.rpc.codec import decode_spec
from gradwire.server.rpc.run_message import report
from gradwire.v1 import run_pb2
from gradwire.wire.errors import InvalidHyperparameter
from gradwire.wire.layout import Layout, Range

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def spec(**options: Any) -> RunSpec:
    return RunSpec("runs/x", Layout([[("w", (3,))]]), FLOAT32, (AdamHyperparameters(),), **options)


@pytest.mark.parametrize("field", ["clip_value", "clip_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-300, -1.0])
def test_number_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidHyperparameter, match=f"{field} is {value}; expected a finite number >= 0") as caught:
        spec(**{field: value})
    assert caught.value.metadata == {"field": field}


@pytest.mark.parametrize("field", ["clip_value", "clip_norm"])
@pytest.mark.parametrize("value", [None, 0.0, 1e-300, 1.0, 1e308])
def test_number_in_range_is_accepted(field: str, value: float | None) -> None:
    assert getattr(spec(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"non_finite_policy": NonFinitePolicy.ALLOW}, True),
        ({"non_finite_policy": NonFinitePolicy.SKIP}, False),
        ({"clip_value": 0.0}, False),
        ({"clip_norm": 0.0}, False),
    ],
    ids=str,
)
def test_what_can_be_told_before_all_has_arrived(options: dict[str, Any], expected: bool) -> None:
    assert spec(**options).early is expected


@pytest.mark.parametrize("clipping", [{}, {"clip_value": 0.0}, {"clip_norm": 0.0}, {"clip_value": 2.0, "clip_norm": 3}])
def test_spec_comes_back_as_it_was_sent(clipping: dict[str, Any]) -> None:
    """Zero is a number, not the absence of one; maximize is said per group."""
    sent = run_pb2.RunSpec(name="runs/x", **clipping)
    for maximize in (False, True):
        sent.groups.add(adam=run_pb2.Adam(maximize=maximize)).tensors.add(name=f"w{maximize}", shape=[1])
    run = Run(decode_spec(sent, "runs/x"), CpuDevice(1), MemoryBudget(2**20), executor=None)  # type: ignore[arg-type]
    back = run_pb2.Run.FromString(report(run, "runs/x", "instance").serialize()).spec
    for field in ("clip_value", "clip_norm"):
        assert getattr(run.spec, field) == clipping.get(field)
        assert back.HasField(field) == (field in clipping)
        assert getattr(back, field) == clipping.get(field, 0)
    assert [group.adam.maximize for group in back.groups] == [False, True]


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_factors_of_norms(dtype: np.dtype[Any]) -> None:
    squares = np.array([0.0, 1.0, 4.0, 100.0, np.inf, np.nan])
    found = norm_factors(squares, 2.0, dtype)
    assert found.dtype == dtype
    expected = [1, 1, 2 / (2 + 1e-6), 2 / (10 + 1e-6), 0, np.nan]
    np.testing.assert_array_equal(found, np.array(expected, dtype))


def test_factors_at_the_ends_of_the_range() -> None:
    assert norm_factors(np.array([0.0, 4.0]), 0.0, FLOAT32).tolist() == [0, 0]
    assert norm_factors(np.array([0.0, 4.0]), 1e308, FLOAT32).tolist() == [1, 1]


def test_the_norm_is_that_of_the_clamped_row_over_present_elements() -> None:
    gradients = np.array([[30.0, 40.0, 99.0], [0.3, 0.4, 99.0]], np.float32)
    device = CpuDevice(1)
    ranges = (Range(0, 2),)
    clip(spec(clip_value=4.0, clip_norm=1.0), device, gradients, ranges, device.square_sums(gradients, 0, ranges))
    norm = math.sqrt(4.0**2 + 4.0**2)
    np.testing.assert_allclose(gradients, [[4 / norm, 4 / norm, 99], [0.3, 0.4, 99]], rtol=1e-6)


def test_a_limit_beyond_float32_clamps_nothing() -> None:
    gradients = np.array([[np.inf, -1e38, np.nan]], np.float32)
    clip(spec(clip_value=1e300), CpuDevice(1), gradients, (Range(0, 3),), np.zeros(1))
    np.testing.assert_array_equal(gradients, np.array([[np.inf, -1e38, np.nan]], np.float32))
