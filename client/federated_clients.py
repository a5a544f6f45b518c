"""The clients of ``train_federated.py``: few pictures of two digits each, and some epochs of softmax regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

Tensor = npt.NDArray[np.float32]
Params = dict[str, Tensor]
"""``weights`` [64, 10] and ``bias`` [10]."""

TRAINING_PICTURES = 1437  # of 1,797; the others are for the test
VALIDATION_PICTURES = 287  # of those to train on, where learning rates are chosen
LABELS_EACH = 2
LOCAL_EPOCHS = 5
LOCAL_BATCH = 10


@dataclass(frozen=True)
class Pictures:
    """Of digits, 8 x 8 pixels scaled to 0 .. 1."""

    images: Tensor
    """``[count, 64]``"""
    labels: npt.NDArray[np.int64]
    """``[count]``: what they show."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: npt.NDArray[np.int64]) -> Pictures:
        return Pictures(self.images[chosen], self.labels[chosen])

    def errors(self, params: Params) -> Tensor:
        """``[count, 10]``: the probabilities that the model gives, less those that are right."""
        scores = self.images @ params["weights"] + params["bias"]
        odds = np.exp(scores - scores.max(1, keepdims=True))
        probabilities: Tensor = odds / odds.sum(1, keepdims=True)
        probabilities[np.arange(len(self)), self.labels] -= 1
        return probabilities

    def accuracy(self, params: Params) -> float:
        """Share that is recognized."""
        right = (self.images @ params["weights"] + params["bias"]).argmax(1) == self.labels
        return float(right.mean())


@dataclass(frozen=True)
class Client:
    """One that keeps its pictures to itself."""

    name: str
    pictures: Pictures

    def train(self, params: Params, lr: float, seed: tuple[int, ...]) -> Params:
        """Where some epochs of gradient descent lead from ``params``, which stay as they are."""
        random = np.random.default_rng(seed)
        local = {name: value.copy() for name, value in params.items()}
        for _ in range(LOCAL_EPOCHS):
            order = random.permutation(len(self.pictures))
            for start in range(0, len(order), LOCAL_BATCH):
                batch = self.pictures[order[start : start + LOCAL_BATCH]]
                errors = batch.errors(local) / np.float32(len(batch))
                local["weights"] -= np.float32(lr) * (batch.images.T @ errors)
                local["bias"] -= np.float32(lr) * errors.sum(0)
        return local


def new_params() -> Params:
    return {"weights": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}


def split(seed: int, clients: int, *, validation: bool = False) -> tuple[list[Client], Pictures]:
    """Clients, and the pictures that none of them has: the test, or a part of those to train on in its place.

    Sorted by label, cut into shards of one size, and dealt, two to each client (McMahan et al. 2017): most have two
    digits, some one or three.
    """
    bunch: Any = load_digits()
    everything = Pictures((bunch.data / 16).astype(np.float32), bunch.target.astype(np.int64))
    random = np.random.default_rng(seed)
    order = random.permutation(len(everything))
    training, held_out = order[:TRAINING_PICTURES], order[TRAINING_PICTURES:]
    if validation:
        training, held_out = training[:-VALIDATION_PICTURES], training[-VALIDATION_PICTURES:]
    by_label = training[np.argsort(everything.labels[training], kind="stable")]
    shards = np.array_split(by_label, clients * LABELS_EACH)
    dealt = random.permutation(len(shards)).reshape(clients, LABELS_EACH)
    own = [np.concatenate([shards[index] for index in indices]) for indices in dealt]
    return [Client(f"client-{n:02}", everything[chosen]) for n, chosen in enumerate(own)], everything[held_out]
