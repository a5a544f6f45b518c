"""Every configuration that ``torch.optim.Adam`` and ``AdamW`` take on the CPU, remotely and locally over 20 steps.

``foreach`` and ``fused`` choose how torch computes; remotely they have no effect, and each of torch's ways is compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from gradwire.client import Server
from tests.client.torch.side_by_side import LR, PRESETS, SideBySide, Tensors, assert_equal, values

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "none": {"foreach": None, "fused": None},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
    "fused": {"fused": True},
    "not-fused": {"fused": False},
    "loop-not-fused": {"foreach": False, "fused": False},
    "foreach-not-fused": {"foreach": True, "fused": False},
    "fused-no-foreach": {"foreach": False, "fused": True},
}
RATES: dict[str, Any] = {
    "float": LR,
    "0-d": torch.tensor(LR, dtype=torch.float64),
    "1-element": torch.tensor([LR], dtype=torch.float64),
}
BETAS: dict[str, Any] = {
    "default": (0.9, 0.999),
    "floats": (0.5, 0.9),
    "tensors": (torch.tensor(0.8, dtype=torch.float64), torch.tensor([0.95], dtype=torch.float64)),
}
FLAGS = list(itertools.product([False, True], repeat=2))
each_preset = pytest.mark.parametrize("kind", PRESETS)
each_float = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def compare(server: Server, kind: str, dtype: torch.dtype = torch.float32, **keywords: Any) -> None:
    """With all keywords given to the constructor."""
    ours, theirs = PRESETS[kind]
    SideBySide(server, ours(**keywords), lambda params: theirs(params, **keywords), values(0, dtype)).check()


@each_preset
def test_defaults(server: Server, kind: str) -> None:
    compare(server, kind)


@pytest.mark.parametrize("way", WAYS)
@each_preset
def test_ways_of_computing(server: Server, kind: str, way: str) -> None:
    for amsgrad, maximize in FLAGS:
        compare(server, kind, lr=LR, weight_decay=0.1, amsgrad=amsgrad, maximize=maximize, **WAYS[way])


@each_float
@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("lr", RATES)
@each_preset
def test_rates_and_betas(server: Server, kind: str, lr: str, betas: str, dtype: torch.dtype) -> None:
    """Numbers and tensors; float64 tensors, with which torch computes as with Python's numbers."""
    for amsgrad, weight_decay in ((False, 0), (True, 0.1)):
        compare(server, kind, dtype, lr=RATES[lr], betas=BETAS[betas], amsgrad=amsgrad, weight_decay=weight_decay)


@pytest.mark.parametrize("decoupled", [False, True])
def test_decoupled_weight_decay_of_adam(server: Server, decoupled: bool) -> None:
    for (amsgrad, maximize), weight_decay in itertools.product(FLAGS, [0, 0.1]):
        keywords: dict[str, Any] = {"amsgrad": amsgrad, "maximize": maximize, "weight_decay": weight_decay}
        compare(server, "adam", lr=LR, decoupled_weight_decay=decoupled, **keywords)


@each_float
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-3, 1])
@each_preset
def test_eps(server: Server, kind: str, eps: float, dtype: torch.dtype) -> None:
    for amsgrad in (False, True):
        compare(server, kind, dtype, lr=LR, eps=eps, amsgrad=amsgrad)


@pytest.mark.parametrize("betas", [(0.0, 0.999), (0.9, 0.0), (0.0, 0.0), (0.999, 0.9)])
@each_preset
def test_betas_at_the_edge(server: Server, kind: str, betas: tuple[float, float]) -> None:
    for amsgrad in (False, True):
        compare(server, kind, lr=LR, betas=betas, amsgrad=amsgrad)


def _cross_product() -> Iterator[tuple[str, str, str, torch.dtype]]:
    for way, lr, betas in itertools.product(("default", "loop", "fused"), RATES, BETAS):
        yield way, lr, betas, torch.float32
    for betas in ("default", "floats"):  # torch itself takes no tensors with foreach=True
        yield "foreach", "float", betas, torch.float32
    for lr, betas in itertools.product(RATES, BETAS):
        yield "default", lr, betas, torch.float64


@pytest.mark.parametrize(("way", "lr", "betas", "dtype"), list(_cross_product()))
@each_preset
def test_the_cross_product(server: Server, kind: str, way: str, lr: str, betas: str, dtype: torch.dtype) -> None:
    """Weight decay, its kind, amsgrad and maximize are keys of groups here, so that one run has all of them."""
    keys = [
        {"weight_decay": weight_decay, "amsgrad": amsgrad, "maximize": maximize, "decoupled_weight_decay": decoupled}
        for (amsgrad, maximize), decoupled, weight_decay in itertools.product(FLAGS, [False, True], [0, 0.1])
    ]
    params: Tensors = [tensor for _ in keys for tensor in values(0, dtype)[:2]]

    def groups(tensors: Tensors) -> list[dict[str, Any]]:
        return [{"params": tensors[2 * index : 2 * index + 2], **own} for index, own in enumerate(keys)]

    ours, theirs = PRESETS[kind]
    keywords = {"lr": RATES[lr], "betas": BETAS[betas], **WAYS[way]}
    SideBySide(server, ours(**keywords), lambda p: theirs(p, **keywords), params, groups).check()


@pytest.mark.parametrize("lr", [torch.tensor(LR), torch.tensor([LR])], ids=["0-d", "1-element"])
@each_preset
def test_a_float32_tensor_as_lr(server: Server, kind: str, lr: torch.Tensor) -> None:
    compare(server, kind, lr=lr, weight_decay=0.1)


@each_preset
def test_zero_as_lr_moves_nothing(server: Server, kind: str) -> None:
    ours, theirs = PRESETS[kind]
    pair = SideBySide(server, ours(lr=0), lambda params: theirs(params, lr=0))
    pair.train()
    assert_equal(pair.there, values())


@each_preset
def test_maximize_can_be_said_to_the_optimizer(server: Server, kind: str) -> None:
    ours, theirs = PRESETS[kind]
    SideBySide(server, ours(lr=LR), lambda params: theirs(params, lr=LR, maximize=True), maximize=True).check()


@each_preset
def test_numbers_of_other_types(server: Server, kind: str) -> None:
    """torch takes whole numbers and numpy's too."""
    compare(server, kind, lr=np.float64(LR), weight_decay=np.float64(0.1), eps=np.float64(1e-8))
    compare(server, kind, lr=1, weight_decay=0, amsgrad=1, maximize=0)
