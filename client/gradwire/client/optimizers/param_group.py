"""Tensors that share hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradwire.client.optimizers.optimizer import Optimizer


class ParamGroup:
    """Tensors with hyperparameters of their own.

    Args:
        params: name -> array.
        optimizer: the group's own; None: the run's.
        hyperparameters: those that differ from that optimizer.
    """

    def __init__(self, params: Mapping[str, Any], optimizer: Optimizer | None = None, **hyperparameters: Any) -> None:
        self.params = dict(params)
        self.optimizer = optimizer
        self.hyperparameters = hyperparameters

    def __repr__(self) -> str:
        own = "" if self.optimizer is None else f"{self.optimizer}, "
        return f"ParamGroup({list(self.params)}, {own}{self.hyperparameters})"
