"""What the examples with torch learn: scikit-learn's digits, and the small network that they train on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

LR = 3e-3
BATCH = 64
TRAINING_PICTURES = 1437  # of 1,797; the others are for the test


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


class Digits:
    """1,797 pictures of 8 x 8 pixels, scaled to 0 .. 1, and what they show: a part to train on, the rest a test."""

    def __init__(self, seed: int) -> None:
        bunch: Any = load_digits()
        self._images = torch.from_numpy(bunch.data / 16).float()
        self._labels = torch.from_numpy(bunch.target)
        self._random = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self._labels), generator=self._random)
        self._training, self._test = order[:TRAINING_PICTURES], order[TRAINING_PICTURES:]

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch, in a new order each time."""
        order = torch.randperm(len(self._training), generator=self._random)
        for chosen in self._training[order].split(BATCH):
            yield self._images[chosen], self._labels[chosen]

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """Share of the test pictures that are recognized."""
        right = model(self._images[self._test]).argmax(1) == self._labels[self._test]
        return float(right.double().mean())
