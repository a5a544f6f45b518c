"""How torch names what a group of SGD or of Adagrad is. (Adam's words, of which there are more, are in `groups`.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from gradwire.client.optimizers.adagrad import Adagrad
from gradwire.client.optimizers.numbers import number, pair, truth
from gradwire.client.optimizers.optimizer import Optimizer
from gradwire.client.optimizers.sgd import SGD
from gradwire.v1 import run_pb2


@dataclass(frozen=True)
class Words:
    """The keys of one optimizer's ``param_groups``; all of them are names of the preset's, and most the contract's."""

    preset: type[Optimizer]
    field: str
    """Of ``gradwire.v1.Group.optimizer``."""
    keys: tuple[str, ...]
    """In torch's order."""
    changing: tuple[str, ...]
    """The numbers that may change from step to step."""
    chosen: tuple[str, ...]
    """What is chosen once."""
    state: tuple[str, ...]
    """The keys of a parameter's state."""

    @property
    def title(self) -> str:
        return f"torch.optim.{self.preset.__name__}"

    def defaults(self, preset: Any) -> dict[str, Any]:
        found = {key: getattr(preset, key) for key in self.keys}
        if not isinstance(preset.lr, torch.Tensor):  # schedulers write into one
            found["lr"] = number("lr", preset.lr)
        if preset.schedule != "constant":
            found["schedule"] = preset.schedule
        if preset.bounds is not None:
            found["bounds"] = preset.bounds
        return found

    def numbers(self, group: Mapping[str, Any]) -> dict[str, Any]:
        bounds = group.get("bounds")
        found: dict[str, Any] = {name: number(name, group[name]) for name in self.changing}
        return {**found, "bounds": (-inf, inf) if bounds is None else pair("bounds", bounds)}

    def check(self, group: Mapping[str, Any]) -> None:
        """Raises NotImplementedError, TypeError, ValueError."""
        self.preset(**{key: group[key] for key in (*self.keys, "schedule", "bounds") if key in group})

    def choices(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {**{key: group[key] for key in self.chosen}, "schedule": group.get("schedule", "constant")}

    def choices_of(self, message: Any) -> dict[str, Any]:
        inverse = message.schedule == run_pb2.Adam.SCHEDULE_INVERSE_SQRT
        found = {key: getattr(message, key) for key in self.chosen}
        return {**found, "schedule": "inverse-sqrt" if inverse else "constant"}

    def hyperparameters(self, group: Mapping[str, Any]) -> dict[str, Any]:
        choices = self.choices(group)
        truths = {key: truth(key, value) for key, value in choices.items() if key in ("nesterov", "maximize")}
        return {**self.numbers(group), **choices, **truths, "bounds": group.get("bounds")}

    def missing(self, saved: Mapping[str, Any]) -> list[str]:
        """Keys without which a group that was saved is not of this optimizer."""
        return [key for key in self.changing if key not in saved]

    def param_group(self, message: Any) -> dict[str, Any]:
        """A group of a run as torch has it, without ``params``."""
        usual = {"foreach": None, "differentiable": False, "fused": None}
        return {key: usual[key] if key in usual else getattr(message, key) for key in self.keys}


WORDS = (
    Words(
        preset=SGD,
        field="sgd",
        keys=(
            *("lr", "momentum", "dampening", "weight_decay", "nesterov"),
            *("maximize", "foreach", "differentiable", "fused"),
        ),
        changing=("lr", "momentum", "dampening", "weight_decay"),
        chosen=("nesterov", "maximize"),
        state=("momentum_buffer",),
    ),
    Words(
        preset=Adagrad,
        field="adagrad",
        keys=(
            *("lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value"),
            *("foreach", "maximize", "differentiable", "fused"),
        ),
        changing=("lr", "lr_decay", "eps", "weight_decay"),
        chosen=("initial_accumulator_value", "maximize"),
        state=("step", "sum"),
    ),
)


def words_of(group: Mapping[str, Any]) -> Words | None:
    """Those of the optimizer that a group of ``param_groups`` belongs to; None: Adam's."""
    if "betas" in group:  # whatever else somebody has put into it
        return None
    return next((words for words in WORDS if all(key in group for key in words.changing)), None)


def words_for(preset: Optimizer) -> Words | None:
    """As `words_of`, for a preset."""
    return next((words for words in WORDS if isinstance(preset, words.preset)), None)


def words_in(message: run_pb2.Group) -> Words | None:
    """As `words_of`, for a group of a run."""
    return next((words for words in WORDS if message.WhichOneof("optimizer") == words.field), None)


def state_keys(words: Words | None) -> tuple[str, ...]:
    """The keys of a parameter's state that are the optimizer's; None: Adam's."""
    return ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq") if words is None else words.state
