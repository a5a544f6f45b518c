"""Optimizers by the names of the client's presets, and their numbers, as a shell gives them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from gradwire.v1 import run_pb2

_Adam = run_pb2.Adam
_FedOpt = run_pb2.FedOpt

_TORCH: dict[str, Any] = {"eps": 1e-8, "epsilon_placement": _Adam.EPSILON_PLACEMENT_PLAIN}

PRESETS = {
    "Adam": run_pb2.Group(adam=_Adam()),
    "AMSGrad": run_pb2.Group(adam=_Adam(amsgrad=True)),
    "TorchAdam": run_pb2.Group(adam=_Adam(**_TORCH, weight_decay_mode=_Adam.WEIGHT_DECAY_MODE_COUPLED)),
    "TorchAdamW": run_pb2.Group(adam=_Adam(**_TORCH, weight_decay=1e-2)),
    "SGD": run_pb2.Group(sgd=run_pb2.Sgd()),
    "Adagrad": run_pb2.Group(adagrad=run_pb2.Adagrad()),
    "Yogi": run_pb2.Group(yogi=run_pb2.Yogi()),
    "FedAdam": run_pb2.Group(fed_opt=_FedOpt(rule=_FedOpt.RULE_ADAM)),
    "FedYogi": run_pb2.Group(fed_opt=_FedOpt(rule=_FedOpt.RULE_YOGI)),
    "FedAdagrad": run_pb2.Group(fed_opt=_FedOpt(rule=_FedOpt.RULE_ADAGRAD, beta1=0.0, beta2=0.0)),
    "FedAMSGrad": run_pb2.Group(fed_opt=_FedOpt(rule=_FedOpt.RULE_AMSGRAD)),
}
"""What a preset sets; the server knows the rest."""

_PAIRS = {"betas": ("beta1", "beta2"), "bounds": ("low", "high")}
_SCHEDULES = {"constant": _Adam.SCHEDULE_CONSTANT, "inverse-sqrt": _Adam.SCHEDULE_INVERSE_SQRT}
_TRUTHS = {"true": True, "false": False}


def group_of(preset: str, settings: Iterable[str]) -> run_pb2.Group:
    """A group of this preset, without tensors.

    Args:
        preset: a key of `PRESETS`.
        settings: ``NAME=VALUE``, by the names of the client's presets; pairs are two numbers with a comma.

    Raises click.BadParameter for what is none. Ranges are checked by the server.
    """
    group = run_pb2.Group()
    group.CopyFrom(PRESETS[preset])
    message: Any = getattr(group, str(group.WhichOneof("optimizer")))
    kinds = _kinds(message)
    given: set[str] = set()
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise _refused(f"{setting!r}; expected NAME=VALUE, such as lr=0.1")
        if name not in kinds:
            raise _refused(f"{preset} has no {name!r}; expected one of {', '.join(sorted(kinds))}")
        if name in given:
            raise _refused(f"{name} is given twice")
        given.add(name)
        for field, found in zip(_PAIRS.get(name, (name,)), _read(name, kinds[name], value), strict=True):
            setattr(message, field, found)
    return group


def _kinds(message: Any) -> dict[str, str]:
    """What can be set -> what it is."""
    fields = {field.name: field for field in message.DESCRIPTOR.fields}
    kinds = {name: "pair" for name, both in _PAIRS.items() if fields.keys() >= set(both)}
    paired = {field for both in _PAIRS.values() for field in both}
    for name, field in fields.items():
        if name == "schedule":
            kinds[name] = "schedule"
        elif field.type == field.TYPE_BOOL:
            kinds[name] = "truth"
        elif field.type == field.TYPE_DOUBLE and name not in paired:
            kinds[name] = "number"
    return kinds


def _read(name: str, kind: str, value: str) -> list[Any]:
    """Values of the message's fields."""
    if kind == "schedule":
        return [_choice(name, _SCHEDULES, value)]
    if kind == "truth":
        return [_choice(name, _TRUTHS, value)]
    count = 2 if kind == "pair" else 1
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        expected = f"two numbers, such as {name}=0.9,0.99" if count == 2 else f"a number, such as {name}=0.1"
        raise _refused(f"{name} is {value!r}; expected {expected}")
    return numbers


def _choice(name: str, choices: dict[str, Any], value: str) -> Any:
    if value not in choices:
        raise _refused(f"{name} is {value!r}; expected one of {', '.join(choices)}")
    return choices[value]


def _refused(message: str) -> click.BadParameter:
    return click.BadParameter(message, param_hint="'--set'")
