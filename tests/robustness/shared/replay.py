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
from gradwire.wire.layout import Range
from tests.robustness.model import Violation
from tests.robustness.shared.connection import digest_of
from tests.robustness.shared.encodings import answered, arrived
from tests.robustness.shared.setting import LR, Floats, Sent, Setting, gradient_of

_FLOAT32 = np.dtype(np.float32)
_DEVICE = CpuDevice(1)


@dataclass(frozen=True)
class Kept:
    """A run at one moment."""

    step: int
    params: bytes
    slots: Mapping[str, bytes]
    tensor_steps: tuple[int, ...]
    lr: float


class Replay:
    """A run to which rounds are applied, in the order of worker ids.

    Args:
        kept: where it goes on from; None: from the beginning.
    """

    def __init__(self, setting: Setting, kept: Kept | None = None) -> None:
        self._setting = setting
        self._lr = LR if kept is None else kept.lr
        self._group = decode_group(0, setting.group(self._lr))
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
        return Kept(self.step, self._state.params.tobytes(), slots, tuple(self._tensor_steps), self._lr)

    @property
    def params(self) -> Floats:
        """Their values now."""
        found: Floats = self._state.params[0].copy()
        return found

    @property
    def digest(self) -> str:
        """Of the parameters, as an answer has them."""
        return digest_of(answered(self._setting, self._state.params[0]))

    def write(self, params: bytes) -> None:
        """Other parameters."""
        self._state.params[0] = np.frombuffer(params, np.float32)

    def apply(self, contributions: Sequence[Sent]) -> None:
        """One round. Args: contributions: in the order of worker ids. Raises Violation for one that must be dropped."""
        setting = self._setting
        self.step += 1
        self._lr = next((sent.lr for sent in contributions if sent.lr), self._lr)
        self._group = decode_group(0, setting.group(self._lr))
        parts = [(sent, self._contribution(sent)) for sent in contributions if not sent.passes(setting)]
        gradient = np.zeros((1, setting.elements), np.float32)
        segments = []
        for tensor in range(2):
            start, stop = self._edges[tensor], self._edges[tensor + 1]
            terms = [(sent.weight, values[start:stop]) for sent, values in parts if tensor == 0 or sent.has_bias]
            if not terms:
                continue
            gradient[0, start:stop] = combined(terms, mean=not setting.sums)
            self._tensor_steps[tensor] += 1
            constants = np.array(self._group.constants(), _FLOAT32)
            varying = self._group.varying(self.step, self._tensor_steps[tensor], 1, _FLOAT32)
            segments.append(Segment(start, stop, self._group.kernel, constants, varying))
        if not np.isfinite(gradient).all():
            raise Violation(f"{setting.name}: round {self.step} was applied, and its gradient is not finite")
        if setting.clips_rounds and segments:
            clip(setting, gradient[:, segments[0].start : segments[-1].stop])
        _DEVICE.update(self._state, gradient, segments)

    def _contribution(self, sent: Sent) -> Floats:
        """What it adds, before its weight."""
        values = arrived(self._setting, gradient_of(self._setting, sent))
        if not self._setting.clips_rounds:
            clip(self._setting, values.reshape(1, -1))
        return values


def clip(setting: Setting, gradient: Floats) -> None:
    """Of the present elements ``[1, n]``, which begin with the run's first one; in place."""
    if setting.clip_value:
        np.clip(gradient, -np.float32(setting.clip_value), np.float32(setting.clip_value), out=gradient)
    if setting.clip_norm:
        norm = np.sqrt(_DEVICE.square_sums(gradient, 0, [Range(0, gradient.shape[1])]))
        gradient *= np.minimum(1.0, setting.clip_norm / (norm + 1e-6)).astype(np.float32)


def combined(terms: Sequence[tuple[float, Floats]], *, mean: bool) -> Floats:
    """The weighted mean, or sum: added in float64 in the given order, rounded once."""
    equal = mean and len({weight for weight, _ in terms}) == 1  # then each counts as one, which is exact
    total: npt.NDArray[np.float64] = np.zeros(terms[0][1].shape)
    for weight, values in terms:
        total = total + values.astype(np.float64) * (1.0 if equal else weight)
    divisor = 1.0 if not mean else float(len(terms)) if equal else math.fsum(weight for weight, _ in terms)
    with np.errstate(over="ignore"):
        return (total / divisor).astype(np.float32)
