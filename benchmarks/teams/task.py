"""What all teams compute: Adam in torch's form over one vector, with the mean of the workers' gradients."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LR, BETAS, EPS = 1e-2, (0.9, 0.999), 1e-8
TURNS = 2
"""Gradients that a worker takes by turns: of equal ones Adam would see the sign alone."""


@dataclass(frozen=True)
class Task:
    """``elements`` float32 and so many workers, each a process of its own. Every process makes the same numbers for
    itself."""

    elements: int
    workers: int
    threads: int = 1
    """Of a process that updates while the others wait: all processors. Where every worker updates they share them."""

    @property
    def size_bytes(self) -> int:
        """Of a gradient."""
        return 4 * self.elements

    @property
    def threads_each(self) -> int:
        """Of each worker where all compute at once."""
        return max(1, self.threads // self.workers)

    def parameters(self) -> Array:
        """Initial values, ``[elements]``, a new array."""
        return np.random.default_rng(0).random(self.elements, np.float32)

    def gradients(self, rank: int) -> list[Array]:
        """``[elements]`` each, which a worker sends by turns. No element is near 0, where an eps would show."""
        found = []
        for turn in range(TURNS):
            random = np.random.default_rng(1 + TURNS * rank + turn)
            values = random.random(self.elements, np.float32)
            values *= 1.0 + turn
            values += np.float32(0.25)
            found.append(values)
        return found

    def expected(self, rounds: int) -> Array:
        """The parameters after so many rounds, in float64, by code that nobody who is measured runs."""
        means = [np.zeros(self.elements) for _ in range(TURNS)]
        for rank in range(self.workers):
            for mean, gradient in zip(means, self.gradients(rank), strict=True):
                mean += gradient / self.workers
        params = self.parameters().astype(np.float64)
        first, second = np.zeros(self.elements), np.zeros(self.elements)
        for t in range(1, rounds + 1):
            gradient = means[(t - 1) % TURNS]
            first += (1 - BETAS[0]) * (gradient - first)
            second += (1 - BETAS[1]) * (gradient * gradient - second)
            spread = np.sqrt(second / (1 - BETAS[1] ** t)) + EPS
            params -= LR / (1 - BETAS[0] ** t) * first / spread
        return params

    def to_text(self) -> str:
        """For a command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Task:
        return cls(**json.loads(text))
