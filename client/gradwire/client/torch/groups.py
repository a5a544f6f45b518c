"""``param_groups`` as torch has them <-> a run's groups.

What torch has no word for (`optimized_update`, `bounds`, ...) stands in a group only where it differs from torch's own
way, so that the groups of a ``TorchAdam`` are those of ``torch.optim.Adam``, key for key.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import torch

from gradwire.client.optimizers.adam import Adam, TorchAdam, WeightDecay
from gradwire.client.optimizers.numbers import number, pair, truth
from gradwire.client.optimizers.optimizer import Optimizer
from gradwire.client.torch.tensors import check_parameter
from gradwire.client.torch.words import words_for, words_in, words_of
from gradwire.v1 import run_pb2

_TORCH_WAY = {
    "optimized_update": False,
    "maximum_of": "raw",
    "bias_correction": True,
    "schedule": "constant",
    "absolute": False,
    "bounds": None,
}

_CHOICES = ("amsgrad", "maximize", "decoupled_weight_decay", *[key for key in _TORCH_WAY if key != "bounds"])


def defaults(preset: Optimizer) -> dict[str, Any]:
    """The preset as ``torch.optim.Optimizer.defaults``. Tensors stay what they are: schedulers write into ``lr``."""
    words = words_for(preset)
    if words is not None:
        return words.defaults(preset)
    assert isinstance(preset, Adam)
    decay = preset.decay()
    lr: Any = preset.lr
    betas: Any = preset.betas
    found: dict[str, Any] = {
        "lr": lr if isinstance(lr, torch.Tensor) else number("lr", lr),
        "betas": tuple(b.reshape(()) if isinstance(b, torch.Tensor) else number("betas", b) for b in betas),
        "eps": preset.eps,
        "weight_decay": decay.weight_decay,
        "amsgrad": preset.amsgrad,
        "maximize": preset.maximize,
        "foreach": preset.foreach if isinstance(preset, TorchAdam) else None,
        "capturable": False,
        "differentiable": False,
        "fused": preset.fused if isinstance(preset, TorchAdam) else None,
        "decoupled_weight_decay": decay.weight_decouple,
    }
    for key, usual in _TORCH_WAY.items():
        value = decay.absolute if key == "absolute" else getattr(preset, key)
        if value != usual:
            found[key] = value
    return found


def checked_numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """`numbers`. Raises NotImplementedError for what a remote step cannot do, TypeError or ValueError for malformed
    values."""
    words = words_of(group)
    if words is not None:
        words.check(group)
        return words.numbers(group)
    for key in ("capturable", "differentiable"):
        if group.get(key):
            raise NotImplementedError(f"{key}=True is not supported: the step runs on a server")
    for key in ("amsgrad", "maximize", "decoupled_weight_decay"):
        truth(key, group[key])
    return numbers(group)


def check_members(index: int, group: Any) -> None:
    """Raises ValueError for a parameter that the group has twice, of which torch only warns."""
    if not isinstance(group, dict) or isinstance(group.get("params", ()), (torch.Tensor, set)):
        return  # torch takes it, or says what is wrong
    group["params"] = list(group["params"])  # it may be a generator
    params = [member[1] if isinstance(member, tuple) else member for member in group["params"]]
    if len({id(param) for param in params}) != len(params):
        raise ValueError(f"parameter group {index} has the same parameter twice")


def check_added(index: int, group: Mapping[str, Any]) -> None:
    """Raises for a group, as torch has made it, that no run can have; `check_members` has looked at it before."""
    checked_numbers(group)
    for position, param in enumerate(group["params"]):
        check_parameter(f"{index}.{position}", param)


def hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """All that a group says, as `ParamGroup` takes it."""
    words = words_of(group)
    if words is not None:
        return words.hyperparameters(group)
    decay = WeightDecay(
        number("weight_decay", group["weight_decay"]),
        weight_decouple=bool(group["decoupled_weight_decay"]),
        absolute=bool(group.get("absolute", False)),
    )
    own = {key: group.get(key, usual) for key, usual in _TORCH_WAY.items() if key != "absolute"}
    return {
        **own,
        "lr": number("lr", group["lr"]),
        "betas": pair("betas", group["betas"]),
        "eps": number("eps", group["eps"]),
        "weight_decay": decay,
        "amsgrad": bool(group["amsgrad"]),
        "maximize": bool(group["maximize"]),
    }


def numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """What may change from step to step, as `Run.step` takes overrides."""
    words = words_of(group)
    if words is not None:
        return words.numbers(group)
    bounds = group.get("bounds")
    return {
        "lr": number("lr", group["lr"]),
        "betas": pair("betas", group["betas"]),
        "eps": number("eps", group["eps"]),
        "weight_decay": number("weight_decay", group["weight_decay"]),
        "bounds": (-inf, inf) if bounds is None else pair("bounds", bounds),
    }


def choices(group: Mapping[str, Any]) -> dict[str, Any]:
    """What cannot change during a run."""
    words = words_of(group)
    if words is not None:
        return words.choices(group)
    return {key: group[key] if key in group else _TORCH_WAY.get(key) for key in _CHOICES}


def check_choices(index: int, group: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Raises ValueError where ``group`` says otherwise than ``expected``.

    Where it says nothing it means torch's only way, or, of what torch's older versions did not write, the expected.
    """
    for key, value in expected.items():
        found = group[key] if key in group else _TORCH_WAY.get(key, value)
        if found != value:
            raise ValueError(f"parameter group {index} has {key}={found!r} {what} {key}={value!r}")


def choices_of(group: run_pb2.Group) -> dict[str, Any]:
    """`choices` of a group of a run. Raises ValueError for one that is of no optimizer of torch's."""
    words = words_in(group)
    if words is not None:
        return words.choices_of(message_of(group))
    message, modes = message_of(group), run_pb2.Adam
    return {
        "amsgrad": message.amsgrad,
        "maximize": message.maximize,
        "decoupled_weight_decay": message.weight_decay_mode != modes.WEIGHT_DECAY_MODE_COUPLED,
        "optimized_update": message.epsilon_placement == modes.EPSILON_PLACEMENT_EPS_HAT,
        "maximum_of": "bias-corrected" if message.maximum_of == modes.MAXIMUM_OF_BIAS_CORRECTED else "raw",
        "bias_correction": message.bias_correction,
        "schedule": "inverse-sqrt" if message.schedule == modes.SCHEDULE_INVERSE_SQRT else "constant",
        "absolute": message.weight_decay_mode == modes.WEIGHT_DECAY_MODE_DECOUPLED_ABSOLUTE,
    }


def message_of(group: run_pb2.Group) -> Any:
    """What a group of a run says of its optimizer. Raises ValueError where torch has none like it."""
    name = group.WhichOneof("optimizer")
    if name not in ("adam", "sgd", "adagrad"):
        raise ValueError(f"the run's optimizer is {name}, and torch.optim has none like it")
    return getattr(group, name)


def check_same_optimizer(index: int, group: Mapping[str, Any], theirs: run_pb2.Group) -> None:
    """Raises ValueError where the run's group is of another optimizer than that of ``param_groups``."""
    if words_of(group) is not words_in(theirs):
        raise ValueError(
            f"parameter group {index} is of another optimizer than {theirs.WhichOneof('optimizer')}, the run's"
        )


def adopt(group: dict[str, Any], theirs: run_pb2.Group) -> None:
    """Puts the numbers that a run has in force into ``group``, which is of the same optimizer."""
    message, words = message_of(theirs), words_of(group)
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(message.lr)
    else:
        group["lr"] = message.lr
    if words is not None:
        group.update({name: getattr(message, name) for name in words.changing if name != "lr"})
    else:
        group.update(betas=(message.beta1, message.beta2), eps=message.eps, weight_decay=message.weight_decay)
    low = message.low if message.HasField("low") else -inf
    high = message.high if message.HasField("high") else inf
    if (low, high) != (-inf, inf):
        group["bounds"] = (low, high)
    else:
        group.pop("bounds", None)


def merged(group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A loaded group with the parameters of ``group``, and those keys of it that older versions of torch did not save.

    Raises ValueError for a group of another optimizer, TypeError for malformed values.
    """
    words = words_of(group)
    expected = ("lr", "betas", "eps", "weight_decay") if words is None else words.changing
    missing = [key for key in expected if key not in saved]
    # Adam had amsgrad before it had foreach; RAdam and NAdam have only the latter.
    if words is None and "foreach" in saved and "amsgrad" not in saved:
        missing.append("amsgrad")
    if missing:
        whose = "Adam" if words is None else words.title
        raise ValueError(f"the state is not one of {whose}'s: a parameter group has no {', '.join(missing)}")
    kept = {key: value for key, value in group.items() if key not in saved and key in _NOT_ALWAYS_SAVED}
    found = {**saved, **kept, "params": group["params"]}
    checked_numbers(found)
    return found


_NOT_ALWAYS_SAVED = (
    "amsgrad",
    "maximize",
    "foreach",
    "capturable",
    "differentiable",
    "fused",
    "decoupled_weight_decay",
    "param_names",
)
