"""What the tests of devices share: the reference's configs as the server's, and arrays in and out of a device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import Device, DeviceArray, Segment, State
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.optimizers.adagrad import AdagradHyperparameters
from gradwire.server.optimizers.adam import (
    SLOTS,
    AdamHyperparameters,
    EpsilonPlacement,
    MaximumOf,
    WeightDecayMode,
)
from gradwire.server.optimizers.base import Hyperparameters
from gradwire.server.optimizers.fed_opt import FedOptHyperparameters, Rule
from gradwire.server.optimizers.schedules import Schedule
from gradwire.server.optimizers.sgd import SgdHyperparameters
from gradwire.server.optimizers.yogi import YogiHyperparameters
from gradwire.wire.layout import Range
from tests.reference import ReferenceConfig
from tests.server.devices.reference_device import ReferenceDevice

Tensor = npt.NDArray[Any]

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
FLOATS: list[np.dtype[Any]] = [np.dtype(np.float32), np.dtype(np.float64)]

Config = ReferenceConfig | Hyperparameters
"""Adam's in the reference's words, or any optimizer's in the server's."""

OTHERS: list[Hyperparameters] = [
    SgdHyperparameters(lr=0.1, weight_decay=0.01, low=-1.0),
    SgdHyperparameters(lr=0.1, momentum=0.9, dampening=0.3, high=1.0, maximize=True),
    SgdHyperparameters(lr=0.7, momentum=0.9, nesterov=True, schedule=Schedule.INVERSE_SQRT),
    AdagradHyperparameters(weight_decay=0.01, low=-1.0, high=1.0),
    AdagradHyperparameters(lr_decay=0.1, initial_accumulator_value=0.1, eps=0.0, maximize=True),
    YogiHyperparameters(weight_decay=0.01, low=-1.0, high=1.0),
    YogiHyperparameters(bias_correction=False, maximize=True),
    FedOptHyperparameters(rule=Rule.ADAM, low=-1.0, high=1.0),
    FedOptHyperparameters(rule=Rule.YOGI, beta1=0.0, maximize=True),
    FedOptHyperparameters(rule=Rule.ADAGRAD, beta1=0.0, schedule=Schedule.INVERSE_SQRT),
    FedOptHyperparameters(rule=Rule.AMSGRAD),
]
"""Every branch of the update functions of all but Adam at least once."""

KERNEL_CONFIGS: list[Config] = [
    ReferenceConfig(),
    ReferenceConfig(amsgrad=True, weight_decay=0.1, bounds=(-1.0, 1.0)),
    ReferenceConfig(eps=1e-8, epsilon_placement="plain", weight_decay=0.01, weight_decay_mode="coupled"),
    ReferenceConfig(eps=1e-8, epsilon_placement="plain", amsgrad=True, schedule="inverse_sqrt"),
    ReferenceConfig(amsgrad=True, weight_decay=0.01, weight_decay_mode="coupled", bias_correction=False),
    ReferenceConfig(eps=1e-8, epsilon_placement="plain", amsgrad=True, maximum_of="bias_corrected"),
    ReferenceConfig(amsgrad=True, weight_decay=0.01, weight_decay_mode="coupled", maximize=True),
    *OTHERS,
]
"""Every branch of the update functions at least once."""


def open_named(name: str) -> Device:
    if name == "reference":
        return ReferenceDevice()
    if name == "cuda":
        from gradwire.server.devices.cuda import CudaDevice

        return CudaDevice()
    return CpuDevice(int(name.removeprefix("cpu-")))


def hyperparameters(config: Config) -> Hyperparameters:
    """The server's form of the reference's config."""
    if not isinstance(config, ReferenceConfig):
        return config
    return AdamHyperparameters(
        lr=config.lr,
        beta1=config.betas[0],
        beta2=config.betas[1],
        eps=config.eps,
        weight_decay=config.weight_decay,
        weight_decay_mode=WeightDecayMode[config.weight_decay_mode.upper()],
        amsgrad=config.amsgrad,
        epsilon_placement=EpsilonPlacement[config.epsilon_placement.upper()],
        maximum_of=MaximumOf[{"raw": "RAW", "bias_corrected": "BIAS_CORRECTED"}[config.maximum_of]],
        bias_correction=config.bias_correction,
        schedule=Schedule[config.schedule.upper()],
        low=config.bounds[0],
        high=config.bounds[1],
        maximize=config.maximize,
    )


def segment(
    config: Config, start: int, stop: int, dtype: np.dtype[Any], *, step: int = 1, t: int = 1, steps: int = 1
) -> Segment:
    group = hyperparameters(config)
    return Segment(start, stop, group.kernel, np.array(group.constants(), dtype), group.varying(step, t, steps, dtype))


def upload(device: Device, values: Tensor, dtype: np.dtype[Any] | None = None) -> DeviceArray:
    rows, length = values.shape
    array = device.allocate(rows, length, dtype or values.dtype)
    device.write(array, 0, values)
    return array


def download(device: Device, array: DeviceArray) -> Tensor:
    return device.read(array, Range(0, array.shape[0]), Range(0, array.shape[1]))


def download_state(device: Device, state: State) -> dict[str, Tensor]:
    found = {name: download(device, array)[0] for name, array in state.slots.items()}
    return {"params": download(device, state.params)[0], **found}


@dataclass
class Problem:
    """Random parameters, a state that some steps have left behind, and a block of gradients; for ``seed`` the same."""

    length: int
    steps: int
    dtype: np.dtype[Any]
    seed: int = 0
    params: Tensor = field(init=False)
    slots: dict[str, Tensor] = field(init=False)
    gradients: Tensor = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        draws = random.normal(size=(4, self.length)).astype(self.dtype)
        self.params = draws[0]
        squares = np.square(draws[2])
        largest = np.maximum(squares, np.square(draws[3]))
        self.slots = dict(zip(SLOTS, (draws[1], squares, largest), strict=True))
        self.slots |= {"momentum_buffer": draws[1], "sum": largest}
        self.gradients = random.normal(size=(self.steps, self.length)).astype(self.dtype)

    def state(self, device: Device) -> State:
        return State(
            upload(device, self.params[None]), {name: upload(device, value[None]) for name, value in self.slots.items()}
        )

    def segments(self, config: Config, cuts: Sequence[int] = ()) -> list[Segment]:
        """The whole vector, cut at ``cuts``; the run's step is 5 and t is 3."""
        edges = [0, *cuts, self.length]
        return [segment(config, a, b, self.dtype, step=5, t=3, steps=self.steps) for a, b in pairwise(edges)]


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Equal, signs of zeros included; NaN equals NaN whatever its payload."""
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(actual)[numbers], np.signbit(expected)[numbers])


def assert_same_state(device: Device, actual: State, expected: State) -> None:
    for name, value in download_state(device, expected).items():
        assert_same_bits(download_state(device, actual)[name], value)
