"""What a shared run should be: its rounds applied here, on the kernels of the server's CPU and nothing else of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import Segment, State
from gradwire.server.devices.cpu import CpuDevice
from gradwire.server.optimizers.base import initial_values
from gradwire.server.rpc.hyperparameters import decode_group
from tests.robustness.shared.connection import digest_of
from tests.robustness.shared.setting import Floats, Sent, Setting, gradient_of

_FLOAT32 = np.dtype(np.float32)
_DEVICE = CpuDevice(1)


@dataclass(frozen=True)
class Kept:
    """A run at one moment."""

    step: int
    params: bytes
    slots: Mapping[str, bytes]
    tensor_steps: tuple[int, ...]


class Replay:
    """A run to which rounds are applied, in the order of worker ids.

    Args:
        kept: where it goes on from; None: from the beginning.
    """

    def __init__(self, setting: Setting, kept: Kept | None = None) -> None:
        self._setting = setting
        self._group = decode_group(0, setting.group())
        self._edges = (0, setting.size, setting.elements)
        elements = setting.elements
        slots = {name: np.zeros((1, elements), _FLOAT32) for name in self._group.kernel.used_slots}
        for name, value in initial_values(self._group).items():
            slots[name][:] = value
        self._state = State(setting.initial().reshape(1, elements), slots)
        self.step = 0
        self._tensor_steps = [0, 0]
        if kept is not None:
            self.step, self._tensor_steps = kept.step, list(kept.tensor_steps)
            self.write(kept.params)
            for name, data in kept.slots.items():
                slots[name][0] = np.frombuffer(data, np.float32)

    def keep(self) -> Kept:
        slots = {name: vector.tobytes() for name, vector in self._state.slots.items()}
        return Kept(self.step, self._state.params.tobytes(), slots, tuple(self._tensor_steps))

    @property
    def digest(self) -> str:
        """Of the parameters."""
        return digest_of(self._state.params.tobytes())

    def write(self, params: bytes) -> None:
        """Other parameters."""
        self._state.params[0] = np.frombuffer(params, np.float32)

    def apply(self, contributions: Sequence[Sent]) -> None:
        """One round. Args: contributions: in the order of worker ids."""
        self.step += 1
        parts = [(sent, gradient_of(self._setting, sent)) for sent in contributions if not sent.passes(self._setting)]
        gradient = np.zeros((1, self._setting.elements), np.float32)
        segments = []
        for tensor in range(2):
            start, stop = self._edges[tensor], self._edges[tensor + 1]
            terms = [(sent.weight, values[start:stop]) for sent, values in parts if tensor == 0 or sent.has_bias]
            if not terms:
                continue
            gradient[0, start:stop] = combined(terms, mean=not self._setting.sums)
            self._tensor_steps[tensor] += 1
            constants = np.array(self._group.constants(), _FLOAT32)
            varying = self._group.varying(self.step, self._tensor_steps[tensor], 1, _FLOAT32)
            segments.append(Segment(start, stop, self._group.kernel, constants, varying))
        _DEVICE.update(self._state, gradient, segments)


def combined(terms: Sequence[tuple[float, Floats]], *, mean: bool) -> Floats:
    """The weighted mean, or sum: added in float64 in the given order, rounded once."""
    equal = mean and len({weight for weight, _ in terms}) == 1  # then each counts as one, which is exact
    total: npt.NDArray[np.float64] = np.zeros(terms[0][1].shape)
    for weight, values in terms:
        total = total + values.astype(np.float64) * (1.0 if equal else weight)
    divisor = 1.0 if not mean else float(len(terms)) if equal else math.fsum(weight for weight, _ in terms)
    return (total / divisor).astype(np.float32)
