"""What a gradient of a shared run says of itself."""

from __future__ import annotations

from typing import Any

from gradwire.client.optimizers.numbers import number
from gradwire.client.training.local_parameters import LocalParameters
from gradwire.v1 import train_pb2
from gradwire.wire.service import MAX_WEIGHT


def check_weight(weight: Any, *, shared: bool) -> float:
    """How much a gradient counts. Raises TypeError for no number, ValueError for one that is not finite and > 0, and
    for any but 1 where it is the only one."""
    if type(weight) is float and weight == 1.0:
        return weight
    found = number("weight", weight)
    if not 0 < found <= MAX_WEIGHT:
        raise ValueError(
            f"weight is {weight!r}; expected a finite number > 0, at most {MAX_WEIGHT:g}, usually that of the examples"
        )
    if not shared and found != 1.0:
        raise ValueError(
            f"weight is {weight!r}, but this run has one worker at a time, whose gradient is the only one; expected no "
            "weight, or a run that was made with workers=Shared(...)"
        )
    return found


def contribution(parameters: LocalParameters, weight: float) -> train_pb2.Contribution:
    """Of a gradient that was computed from ``parameters`` as they are now.

    It is to be made before anything is sent: parameters that are read anew on the way are not those.
    """
    return train_pb2.Contribution(weight=weight, base_step=parameters.step_count, base_epoch=parameters.epoch)
