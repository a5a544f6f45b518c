"""``state_dict()`` of an optimizer as torch writes it, and a loaded one taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import torch

from gradwire.client.torch import groups as torch_groups
from gradwire.client.torch.binding import ParamGroups
from gradwire.client.torch.state import check_parts
from gradwire.client.torch.words import state_keys, words_of


def packed(states: Mapping[Any, Any], param_groups: ParamGroups) -> dict[str, Any]:
    """States and groups with numbers in the place of parameters."""
    numbers: dict[int, int] = {}
    for group in param_groups:
        for param in group["params"]:
            numbers.setdefault(id(param), len(numbers))
    return {
        "state": {
            numbers[id(key)] if isinstance(key, torch.Tensor) else key: value
            for key, value in states.items()
            if not isinstance(key, torch.Tensor) or id(key) in numbers
        },
        "param_groups": [
            {
                **{key: value for key, value in group.items() if key != "params"},
                "params": [numbers[id(param)] for param in group["params"]],
            }
            for group in param_groups
        ],
    }


class Checkpoint(NamedTuple):
    """A saved state, for the parameters that an optimizer has."""

    states: dict[Any, Any]
    """The optimizer's, under the keys of ``saved_groups``."""
    saved_groups: list[dict[str, Any]]
    others: dict[Any, Any]
    """What wrappers have kept: by parameter beside the optimizer's own, or under other keys."""
    groups: list[dict[str, Any]]
    """``param_groups`` as they are to become."""


def unpacked(state_dict: Any, param_groups: ParamGroups) -> Checkpoint:
    """Raises TypeError or ValueError for what is no state, or is one of other groups or of another optimizer."""
    check_parts(state_dict)
    saved = deepcopy(state_dict["param_groups"])
    theirs, ours = ([len(group["params"]) for group in groups] for groups in (saved, param_groups))
    if theirs != ours:
        raise ValueError(f"the state has parameter groups of {theirs} parameters; this optimizer has {ours}")
    groups = [torch_groups.merged(group, new) for group, new in zip(param_groups, saved, strict=True)]
    params = {
        key: param
        for group, new in zip(groups, saved, strict=True)
        for param, key in zip(group["params"], new["params"], strict=True)
    }
    own = {key: state_keys(words_of(group)) for group, new in zip(groups, saved, strict=True) for key in new["params"]}
    states: dict[Any, Any] = {}
    others: dict[Any, Any] = {}
    for key, entry in state_dict["state"].items():
        if isinstance(key, str) and key not in params:
            others[key] = deepcopy(entry)
        elif not isinstance(entry, Mapping) or key not in params:
            states[key] = entry  # for who reads it to refuse
        else:
            states[key] = {name: value for name, value in entry.items() if name in own[key]}
            rest = {name: _moved(value, params[key]) for name, value in entry.items() if name not in own[key]}
            if rest:
                others[params[key]] = rest
    return Checkpoint(states, saved, others, groups)


def _moved(value: Any, param: torch.Tensor) -> Any:
    """As torch loads it."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device=param.device, dtype=param.dtype, copy=True)
    return deepcopy(value)
