"""Hyperparameters that change during a run, as messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradwire.client.optimizers.numbers import number, pair
from gradwire.v1 import run_pb2

_NUMBERS = ("lr", "eps", "weight_decay", "momentum", "dampening", "lr_decay", "tau")


def override_messages(
    groups: int, lr: float | Sequence[float] | None, overrides: Mapping[int, Mapping[str, Any]] | None
) -> list[run_pb2.Override]:
    """The changes of ``groups`` groups. Raises ValueError or TypeError."""
    if lr is None and not overrides:
        return []
    changes: dict[int, dict[str, Any]] = {group: dict(values) for group, values in (overrides or {}).items()}
    for group in changes:
        if not 0 <= group < groups:
            raise ValueError(f"overrides name group {group}; this run has groups 0 to {groups - 1}")
    if lr is not None:
        value: Any = lr
        rates = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * groups
        if len(rates) != groups:
            raise ValueError(f"lr has {len(rates)} values; expected one number, or one for each of {groups}")
        for group, rate in enumerate(rates):
            changes.setdefault(group, {})["lr"] = rate
    return [to_override(group, values) for group, values in sorted(changes.items())]


def to_override(group: int, changes: Mapping[str, Any]) -> run_pb2.Override:
    """New numbers for one group: ``betas``, ``bounds``, and what of `_NUMBERS` its optimizer has. Raises TypeError."""
    override = run_pb2.Override(group=group)
    for name, value in changes.items():
        if name in _NUMBERS:
            setattr(override, name, number(name, value))
        elif name == "betas":
            override.beta1, override.beta2 = pair(name, value)
        elif name == "bounds":
            override.low, override.high = pair(name, value)
        else:
            raise TypeError(f"{name!r} cannot change during a run; expected {', '.join(_NUMBERS)}, betas or bounds")
    return override
