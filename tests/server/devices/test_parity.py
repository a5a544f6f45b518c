"""Whole optimizers on each device against the reference, and the reference's presets against torch."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwire.server.devices.base import Device, Write
from gradwire.server.optimizers.adam import SLOTS
from tests.reference import ReferenceAdam, ReferenceConfig
from tests.server.devices.harness import FLOATS, SIMULATED, Tensor, download, download_state, hyperparameters, segment

RTOL = {np.dtype(np.float32): 2e-6, np.dtype(np.float64): 2e-14}
each_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)
quick = settings(derandomize=True, database=None, max_examples=8 if SIMULATED else 24)


@st.composite
def configs(draw: st.DrawFn) -> ReferenceConfig:
    """Any valid combination of the knobs."""
    amsgrad = draw(st.booleans())
    placement: Literal["eps_hat", "plain"] = draw(st.sampled_from(("eps_hat", "plain")))
    corrected = amsgrad and placement == "plain" and draw(st.booleans())
    return ReferenceConfig(
        lr=draw(st.sampled_from([0.0, 1e-4, 1e-2, 0.5])),
        betas=(draw(st.sampled_from([0.0, 0.9, 0.99])), draw(st.sampled_from([0.0, 0.9, 0.999]))),
        eps=draw(st.sampled_from([0.0, 1e-16, 1e-8, 1e-3])),
        weight_decay=draw(st.sampled_from([0.0, 0.01, 0.3])),
        weight_decay_mode=draw(st.sampled_from(("decoupled", "decoupled_absolute", "coupled"))),
        amsgrad=amsgrad,
        epsilon_placement=placement,
        maximum_of="bias_corrected" if corrected else "raw",
        bias_correction=corrected or draw(st.booleans()),
        schedule=draw(st.sampled_from(("constant", "inverse_sqrt"))),
        bounds=draw(st.sampled_from([(-np.inf, np.inf), (-0.5, 0.75), (0.0, np.inf), (0.1, 0.1)])),
        maximize=draw(st.booleans()),
    )


class OnDevice:
    """The steps of ``ReferenceAdam`` done by a device: tensors in one flat vector, t per tensor."""

    def __init__(self, device: Device, reference: ReferenceAdam) -> None:
        self.device = device
        self.configs = reference.configs
        self.t = dict(reference.t)
        self.places: dict[str, tuple[int, int]] = {}
        start = 0
        for name, value in reference.params.items():
            self.places[name] = (start, start + value.size)
            start += value.size
        self.dtype = next(iter(reference.params.values())).dtype
        self.length = start
        self.state = device.allocate_state(SLOTS, start, self.dtype)
        device.write(self.state.params, 0, np.concatenate(list(reference.params.values()))[None])

    def block(self, grads: list[dict[str, Tensor]], run_step: int, write: Write = Write.NOTHING) -> Tensor:
        """One call of the device for all steps; returns what it wrote."""
        steps = len(grads)
        gradients = self.device.allocate(steps, self.length, self.dtype)
        segments = []
        for name in grads[0]:
            start, stop = self.places[name]
            self.device.write(gradients, start, np.stack([present[name] for present in grads]))
            config, t = self.configs[name], self.t[name] + 1
            segments.append(segment(config, start, stop, self.dtype, step=run_step, t=t, steps=steps))
            self.t[name] += steps
        out = self.device.allocate(steps, self.length, self.dtype)
        self.device.update(self.state, gradients, segments, out=out, write=write)
        return download(self.device, out)

    def assert_close(self, reference: ReferenceAdam) -> None:
        found = download_state(self.device, self.state)
        for name, (start, stop) in self.places.items():
            config = self.configs[name]
            rtol = RTOL[self.dtype]
            # A parameter near zero is a difference of numbers as large as itself and a few learning rates.
            np.testing.assert_allclose(
                found["params"][start:stop], reference.params[name], rtol, rtol * (1 + 30 * config.lr), err_msg=name
            )
            slots = {"exp_avg": reference.exp_avg, "exp_avg_sq": reference.exp_avg_sq}
            if config.amsgrad:
                slots["max_exp_avg_sq"] = reference.max_exp_avg_sq
            for slot, expected in slots.items():
                np.testing.assert_allclose(
                    found[slot][start:stop], expected[name], rtol, rtol, err_msg=f"{name} {slot}"
                )


def draws(seed: int, *shape: int, dtype: np.dtype[Any]) -> Tensor:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@each_float
@quick
@given(config=configs(), other=configs(), first_t=st.sampled_from([0, 1, 40, 10**6]), steps=st.sampled_from([1, 2, 7]))
def test_device_equals_the_reference_over_all_knobs(
    device: Device, dtype: np.dtype[Any], config: ReferenceConfig, other: ReferenceConfig, first_t: int, steps: int
) -> None:
    """Two groups; tensor b is absent from one block, so that its t is another than a's. Gradients hold zeros."""
    sizes = {"a": 3, "b": 4, "c": 2} if SIMULATED else {"a": 5, "b": 1200, "c": 7}
    params = {name: draws(i, size, dtype=dtype) for i, (name, size) in enumerate(sizes.items())}
    reference = ReferenceAdam(params, {"a": config, "b": config, "c": other})
    reference.t = {"a": first_t, "b": first_t, "c": 3}
    mine = OnDevice(device, reference)
    grads = {name: draws(10 + i, 3 * steps, size, dtype=dtype) for i, (name, size) in enumerate(sizes.items())}
    grads["a"][:, 0] = 0
    run_step = 1
    for names in ("abc", "ac", "cab"):
        rows = range(run_step - 1, run_step - 1 + steps)
        block = [{name: grads[name][k] for name in names} for k in rows]
        reference.block(block, run_step)
        mine.block(block, run_step)
        run_step += steps
    mine.assert_close(reference)


@pytest.mark.skipif(SIMULATED, reason="too long for the simulator")
@each_float
@pytest.mark.parametrize("amsgrad", [False, True])
def test_long_block_equals_the_reference(device: Device, dtype: np.dtype[Any], amsgrad: bool) -> None:
    """1000 steps in one block, the trajectory included: scalars do not drift."""
    config = ReferenceConfig(lr=1e-2, amsgrad=amsgrad, weight_decay=0.1, schedule="inverse_sqrt", bounds=(-1, 1))
    reference = ReferenceAdam({"x": draws(0, 3, dtype=dtype)}, config)
    mine = OnDevice(device, reference)
    block = [{"x": row} for row in draws(1, 1000, 3, dtype=dtype)]
    expected = np.stack([params["x"] for params in reference.block(block)])
    found = mine.block(block, 1, Write.TRAJECTORY)
    np.testing.assert_allclose(found, expected, rtol=0, atol=20 * RTOL[dtype])


@each_float
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["coupled", "decoupled"])
def test_plain_form_equals_torch(
    device: Device,
    length: int,
    dtype: np.dtype[Any],
    amsgrad: bool,
    weight_decay: float,
    mode: Literal["coupled", "decoupled"],
) -> None:
    """``torch.optim.Adam`` where weight decay is coupled, ``AdamW`` where it is not; 20 steps."""
    config = ReferenceConfig(
        lr=1e-2, eps=1e-8, epsilon_placement="plain", amsgrad=amsgrad, weight_decay=weight_decay, weight_decay_mode=mode
    )
    size = 11 if SIMULATED else length
    reference = ReferenceAdam({"x": draws(0, size, dtype=dtype)}, config)
    mine = OnDevice(device, reference)
    theirs = torch.from_numpy(reference.params["x"].copy())
    kind = torch.optim.Adam if mode == "coupled" else torch.optim.AdamW
    optimizer = kind([theirs], lr=1e-2, eps=1e-8, weight_decay=weight_decay, amsgrad=amsgrad)
    grads = draws(1, 20, size, dtype=dtype)
    mine.block([{"x": row} for row in grads], 1)
    for row in grads:
        reference.step({"x": row})
        theirs.grad = torch.from_numpy(row)
        optimizer.step()
    tolerance = 2e-6 if dtype.itemsize == 4 else 1e-12
    for found in (download(device, mine.state.params)[0], reference.params["x"]):
        # Coupled decay makes the update a quotient of differences; the parameters themselves are of size one.
        np.testing.assert_allclose(found, theirs.numpy(), rtol=tolerance, atol=tolerance / 2)


def test_learning_rate_of_a_schedule_is_the_reference_s() -> None:
    config = ReferenceConfig(lr=0.5, schedule="inverse_sqrt")
    assert [hyperparameters(config).learning_rate(step) for step in (1, 2, 10**7)] == [
        config.lr_at(step) for step in (1, 2, 10**7)
    ]


def test_scalars_depend_on_t_alone_not_on_where_a_block_begins() -> None:
    group = hyperparameters(ReferenceConfig(schedule="inverse_sqrt", weight_decay=0.1))
    whole = group.varying(1, 1, 1000, np.dtype(np.float64))
    for k in (0, 1, 499, 999):
        assert group.varying(k + 1, k + 1, 1, np.dtype(np.float64)).tolist() == whole[k : k + 1].tolist()
