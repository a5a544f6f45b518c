"""What a run is made of, from what its maker gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradwire.client.encodings import flat_vector
from gradwire.client.optimizers import ParamGroup
from gradwire.v1 import run_pb2


def checked_groups(params: Mapping[str, Any] | Sequence[ParamGroup]) -> list[ParamGroup]:
    """The groups. Raises TypeError."""
    groups = [ParamGroup(params)] if isinstance(params, Mapping) else list(params)
    for group in groups:
        if not isinstance(group, ParamGroup):
            raise TypeError(f"params hold a {type(group).__name__}; expected a dict, or a list of ParamGroup")
        for key in group.params:
            if not isinstance(key, str):
                raise TypeError(f"a tensor is named {key!r}; expected a string")
    return groups


def slots_of(spec: run_pb2.RunSpec) -> tuple[str, ...]:
    """The state vectors that a run of this spec will have."""
    maximum = any(group.adam.amsgrad for group in spec.groups)
    return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if maximum else ("exp_avg", "exp_avg_sq")


def run_dtype(dtype: str | None, groups: Sequence[ParamGroup]) -> np.dtype[Any]:
    """The dtype of a run: what is asked for, else what all arrays have. Raises ValueError."""
    if dtype is None:
        values = [(name, value) for group in groups for name, value in group.params.items()]
        found = {flat_vector.as_array(name, value).dtype for name, value in values if not flat_vector.is_plain(value)}
        return np.dtype(np.float64 if found == {np.dtype(np.float64)} else np.float32)
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype is {dtype!r}; expected 'float32' or 'float64'")
    return np.dtype(dtype)
