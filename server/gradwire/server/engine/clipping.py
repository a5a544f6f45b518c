"""Gradient clipping: the numbers of ``torch.nn.utils.clip_grad_value_`` and ``clip_grad_norm_``, row by row.

A row is the gradient of one step of a block, so that a block of K equals K single steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwire.server.devices.base import Device, DeviceArray
from gradwire.server.engine.spec import RunSpec
from gradwire.server.optimizers.base import Floats
from gradwire.wire.layout import Range


def clip(
    spec: RunSpec,
    device: Device,
    gradients: DeviceArray,
    ranges: Sequence[Range],
    sums: npt.NDArray[np.float64],
) -> None:
    """Clips ``gradients`` ``[K, elements]`` in place as the run asks for.

    Args:
        ranges: the present elements; the others are neither counted nor changed.
        sums: the square sums of the gradients as they arrived, of all rows where ``spec.clip_norm`` is set.
    """
    if spec.clip_value is not None:
        with np.errstate(over="ignore"):  # a limit beyond float32 is none for a float32 run
            limit = float(spec.dtype.type(spec.clip_value))
        device.clip(gradients, ranges, max_value=limit)
        if spec.clip_norm is not None:
            sums = device.square_sums(gradients, 0, ranges)
    if spec.clip_norm is not None:
        device.clip(gradients, ranges, factors=norm_factors(sums, spec.clip_norm, spec.dtype))


def norm_factors(sums: npt.NDArray[np.float64], clip_norm: float, dtype: np.dtype[Any]) -> Floats:
    """``min(1, clip_norm / (norm + 1e-6))`` for each square sum, NaN for NaN; computed in float64, then cast."""
    with np.errstate(over="ignore"):  # a large clip_norm over a small norm
        factors: Floats = np.minimum(1.0, clip_norm / (np.sqrt(sums) + 1e-6)).astype(dtype)
    return factors
