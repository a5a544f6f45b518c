"""Which optimizers there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradwire.server.optimizers.adagrad import AdagradHyperparameters
from gradwire.server.optimizers.adam import AdamHyperparameters
from gradwire.server.optimizers.base import Hyperparameters
from gradwire.server.optimizers.fed_opt import FedOptHyperparameters
from gradwire.server.optimizers.sgd import SgdHyperparameters
from gradwire.server.optimizers.yogi import YogiHyperparameters

OPTIMIZERS: Mapping[str, Any] = {
    "adam": AdamHyperparameters,
    "sgd": SgdHyperparameters,
    "adagrad": AdagradHyperparameters,
    "yogi": YogiHyperparameters,
    "fed_opt": FedOptHyperparameters,
}
"""The name in ``gradwire.v1.Group.optimizer`` and in stored runs -> the class."""


def name_of(group: Hyperparameters) -> str:
    """The optimizer's name."""
    return next(name for name, kind in OPTIMIZERS.items() if type(group) is kind)
