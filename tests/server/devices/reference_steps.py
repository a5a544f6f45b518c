"""One step of each optimizer over whole numpy arrays, from the scalars that it hands to a device: a formula a line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradwire.server.devices.base import Segment
from gradwire.server.optimizers import adagrad as adagrad_module
from gradwire.server.optimizers import adam as adam_module
from gradwire.server.optimizers import fed_opt as fed_opt_module
from gradwire.server.optimizers import sgd as sgd_module
from gradwire.server.optimizers import yogi as yogi_module
from gradwire.server.optimizers.base import Floats, Kernel

Step = Callable[[list[Floats], Floats, Segment, Floats], list[Floats]]
"""(parameters and used slots, gradient, scalars of the block, scalars of the step) -> parameters and used slots."""


def step_of(kernel: Kernel) -> Step:
    """The step of the optimizer whose kernel that is."""
    return _STEPS[kernel.update]


def adam(values: list[Floats], g: Floats, segment: Segment, varying: Floats) -> list[Floats]:
    """One step of Adam or AMSGrad from the scalars that the optimizer hands to a device."""
    beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, low, high = segment.constants
    decay, step_size, root_correction2, correction2 = varying
    coupled, amsgrad, plain, corrected_maximum, maximize = segment.kernel.statics
    p, m, v = values[:3]
    if maximize:
        g = -g
    p = p * decay
    if coupled and weight_decay > 0:
        g = g + weight_decay * p
    m = beta1 * m + one_minus_beta1 * g
    v = beta2 * v + one_minus_beta2 * g * g
    u = v / correction2 if corrected_maximum else v
    maximum = []
    if amsgrad:
        u = np.maximum(values[3], u)
        maximum = [u]
    root = np.sqrt(u)
    if plain and not corrected_maximum:
        root = root / root_correction2
    p = np.clip(p - step_size * m / (root + eps), low, high)
    return [p, m, v, *maximum]


def sgd(values: list[Floats], g: Floats, segment: Segment, varying: Floats) -> list[Floats]:
    momentum, weight_decay, low, high = segment.constants
    step_size, kept, added = varying
    has_momentum, nesterov, maximize = segment.kernel.statics
    p, *buffer = values
    if maximize:
        g = -g
    if weight_decay > 0:
        g = g + weight_decay * p
    if has_momentum:
        buffer = [kept * buffer[0] + added * g]
        g = g + momentum * buffer[0] if nesterov else buffer[0]
    return [np.clip(p - step_size * g, low, high), *buffer]


def adagrad(values: list[Floats], g: Floats, segment: Segment, varying: Floats) -> list[Floats]:
    eps, weight_decay, low, high = segment.constants
    p, squares = values
    if segment.kernel.statics[0]:
        g = -g
    if weight_decay > 0:
        g = g + weight_decay * p
    squares = squares + g * g
    return [np.clip(p - varying[0] * g / (np.sqrt(squares) + eps), low, high), squares]


def additive(v: Floats, square: Floats, one_minus_beta2: Floats) -> Floats:
    """Yogi's second moment."""
    moved: Floats = v - np.sign(v - square) * (one_minus_beta2 * square)
    return moved


def yogi(values: list[Floats], g: Floats, segment: Segment, varying: Floats) -> list[Floats]:
    beta1, one_minus_beta1, one_minus_beta2, eps, weight_decay, low, high = segment.constants
    step_size, root_correction2 = varying
    p, m, v = values
    if segment.kernel.statics[0]:
        g = -g
    if weight_decay > 0:
        g = g + weight_decay * p
    m = beta1 * m + one_minus_beta1 * g
    v = additive(v, g * g, one_minus_beta2)
    return [np.clip(p - step_size * m / (np.sqrt(v) / root_correction2 + eps), low, high), m, v]


def fed_opt(values: list[Floats], g: Floats, segment: Segment, varying: Floats) -> list[Floats]:
    beta1, one_minus_beta1, beta2, one_minus_beta2, tau, low, high = segment.constants
    has_momentum, is_yogi, is_adagrad, amsgrad, maximize = segment.kernel.statics
    p, slots = values[0], dict(zip(segment.kernel.used_slots, values[1:], strict=True))
    if maximize:
        g = -g
    square, v = g * g, slots["exp_avg_sq"]
    if has_momentum:
        g = slots["exp_avg"] = beta1 * slots["exp_avg"] + one_minus_beta1 * g
    if is_yogi:
        v = additive(v, square, one_minus_beta2)
    elif is_adagrad:
        v = v + square
    else:
        v = beta2 * v + one_minus_beta2 * square
    slots["exp_avg_sq"] = v
    if amsgrad:
        v = slots["max_exp_avg_sq"] = np.maximum(slots["max_exp_avg_sq"], v)
    return [np.clip(p - varying[0] * g / (np.sqrt(v) + tau), low, high), *slots.values()]


_STEPS: dict[Callable[..., object], Step] = {
    adam_module.update: adam,
    sgd_module.update: sgd,
    adagrad_module.update: adagrad,
    yogi_module.update: yogi,
    fed_opt_module.update: fed_opt,
}
