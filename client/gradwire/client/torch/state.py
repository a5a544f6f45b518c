"""Optimizer state of a run to and from ``torch.optim.Adam``.

Tensors are numbered in the run's layout order, group after group, as torch numbers the parameters it was given.

Example::

    import gradwire.client.torch as gradwire_torch

    optimizer = torch.optim.Adam(parameters, amsgrad=True)
    optimizer.load_state_dict(gradwire_torch.state_dict(run))       # go on locally
    gradwire_torch.load_state_dict(run, optimizer.state_dict())     # and back again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gradwire.client.optimizers.numbers import number as as_number
from gradwire.client.run import Run
from gradwire.v1 import run_pb2
from gradwire.wire.layout import TensorLayout, shape_text

_ALL_SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_LARGEST_FLOAT32_STEP = 2**24
"""torch counts steps in float32, which holds whole numbers up to here."""


def state_dict(run: Run) -> dict[str, Any]:
    """The run's optimizer state as ``torch.optim.Adam(...).state_dict()`` has it.

    The hyperparameters are those in force: the ``lr`` of a schedule is its lr0, and what torch has no word for (bounds,
    epsilon-hat form, no bias correction, schedules) stays behind. Tensors that have never been stepped have no state.

    Raises ValueError where the same numbers would mean something else to torch: a maximum of the corrected moment, a
    weight decay that does not scale with lr.
    """
    groups = _groups(run)
    state = {index: entry for index, entry in enumerate(tensor_states(run, groups)) if entry is not None}
    param_groups = []
    for number, group in enumerate(groups):
        members = [index for index, tensor in enumerate(run.layout.tensors) if tensor.group == number]
        param_groups.append({**_hyperparameters(number, group), "params": members})
    return {"state": state, "param_groups": param_groups}


def load_state_dict(run: Run, torch_state: Mapping[str, Any]) -> None:
    """Puts the state of a ``torch.optim.Adam`` into a run, whole or not at all. Tensors without state start at t = 0.

    Parameters and hyperparameters stay the run's own: see `Run.write`, and ``lr`` and ``overrides`` of `Run.step`. The
    run's step becomes the largest t.

    Raises ValueError for another number of groups or tensors, another shape, or a state of the other variant (with
    ``max_exp_avg_sq`` where the group has no amsgrad, or without), TypeError for what is no tensor or no state at all.
    Nothing has been sent then.
    """
    run.load_state_dict(run_state(run, _groups(run), torch_state))


def tensor_states(run: Run, groups: Sequence[run_pb2.Adam]) -> list[dict[str, Any] | None]:
    """Each tensor's state in torch's words, in layout order; None: it has never been stepped."""
    states: list[dict[str, Any] | None] = []
    for tensor, parts in zip(run.layout.tensors, _parts(run), strict=True):
        t = parts["step"]
        if t == 0:
            states.append(None)
            continue
        counter = torch.float32 if t <= _LARGEST_FLOAT32_STEP else torch.float64
        slots = {slot: torch.from_numpy(parts[slot].copy()) for slot in slots_of(groups[tensor.group])}
        states.append({"step": torch.tensor(float(t), dtype=counter), **slots})
    return states


def check_parts(torch_state: Any) -> None:
    """Raises TypeError or ValueError for what no ``state_dict()`` of an optimizer is."""
    if not isinstance(torch_state, Mapping):
        raise TypeError(
            f"the state is a {type(torch_state).__name__}; expected what state_dict() of an optimizer gives"
        )
    for key in ("state", "param_groups"):
        if key not in torch_state:
            raise ValueError(f"the state has no {key!r}; expected what state_dict() of an optimizer gives")


def run_state(run: Run, groups: Sequence[run_pb2.Adam], torch_state: Mapping[str, Any]) -> dict[str, Any]:
    """torch's state as `Run.load_state_dict` takes it. Raises ValueError and TypeError as `load_state_dict` does."""
    check_parts(torch_state)
    indices = _indices(run, groups, torch_state["param_groups"])
    states: Mapping[Any, Mapping[str, Any]] = torch_state["state"]
    unknown = [key for key in states if key not in indices]
    if unknown:
        raise ValueError(f"the state names parameters {unknown[:5]} that no parameter group has")
    tensors = {}
    for index, tensor in zip(indices, run.layout.tensors, strict=True):
        tensors[tensor.name] = tensor_state(run, tensor, slots_of(groups[tensor.group]), states.get(index) or {})
    return {"step": max(parts["step"] for parts in tensors.values()), "tensors": tensors}


def _groups(run: Run) -> list[run_pb2.Adam]:
    groups = [group.adam for group in run.describe().spec.groups]
    for number, group in enumerate(groups):
        if group.maximum_of == run_pb2.Adam.MAXIMUM_OF_BIAS_CORRECTED:
            raise ValueError(
                f"group {number} keeps the maximum of the bias-corrected moment; torch.optim.Adam that of the raw one"
            )
    return groups


def slots_of(group: run_pb2.Adam) -> Sequence[str]:
    return _ALL_SLOTS if group.amsgrad else _ALL_SLOTS[:2]


def _parts(run: Run) -> list[dict[str, Any]]:
    tensors = run.state_dict()["tensors"]
    return [tensors[tensor.name] for tensor in run.layout.tensors]


def _hyperparameters(number: int, group: run_pb2.Adam) -> dict[str, Any]:
    """A group as torch's ``param_groups`` have it, without ``params``."""
    absolute = group.weight_decay_mode == run_pb2.Adam.WEIGHT_DECAY_MODE_DECOUPLED_ABSOLUTE
    if absolute and group.weight_decay:
        raise ValueError(f"group {number} has an absolute weight decay; that of torch.optim.AdamW is a multiple of lr")
    return {
        "lr": group.lr,
        "betas": (group.beta1, group.beta2),
        "eps": group.eps,
        "weight_decay": group.weight_decay,
        "amsgrad": group.amsgrad,
        "maximize": group.maximize,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "decoupled_weight_decay": group.weight_decay_mode != run_pb2.Adam.WEIGHT_DECAY_MODE_COUPLED,
    }


def _indices(run: Run, groups: Sequence[run_pb2.Adam], param_groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """torch's index of each tensor, in layout order. Raises ValueError where the groups are not the run's."""
    found = [len(group["params"]) for group in param_groups]
    expected = [sum(tensor.group == number for tensor in run.layout.tensors) for number in range(run.layout.groups)]
    if found != expected:
        raise ValueError(f"the state has parameter groups of {found} tensors; run {run.name!r} has {expected}")
    for number, (theirs, ours) in enumerate(zip(param_groups, groups, strict=True)):
        if bool(theirs.get("amsgrad", False)) != ours.amsgrad:
            raise ValueError(f"group {number} of the state has amsgrad={not ours.amsgrad}; the run's has the opposite")
    return [index for group in param_groups for index in group["params"]]


def tensor_state(run: Run, tensor: TensorLayout, slots: Sequence[str], state: Mapping[str, Any]) -> dict[str, Any]:
    """One tensor's state with all of the run's slots. Raises ValueError where torch's does not fit."""
    used = {slot for slot in _ALL_SLOTS if slot in run.slots}
    if not state:
        return {"step": 0, **{slot: np.zeros(tensor.shape, run.dtype) for slot in used}}
    if set(state) != {"step", *slots}:
        raise ValueError(
            f"the state of tensor {shape_text(tensor)} has {sorted(state)}; expected {sorted(('step', *slots))}"
        )
    parts: dict[str, Any] = {"step": _whole(state["step"], tensor)}
    for slot in used:
        # A group without amsgrad leaves the maximum alone, in a run that keeps one for the other groups.
        if slot not in slots:
            parts[slot] = np.zeros(tensor.shape, run.dtype)
            continue
        parts[slot] = _array(state[slot], run.dtype, f"{slot} of tensor {shape_text(tensor)}")
        if parts[slot].shape != tensor.shape:
            raise ValueError(f"{slot} of tensor {shape_text(tensor)} has shape {parts[slot].shape}")
    return parts


def _whole(step: Any, tensor: TensorLayout) -> int:
    """A count of steps, which torch keeps as a float."""
    try:
        count = as_number("step", step)
    except TypeError:
        count = nan
    if not (count >= 0 and count.is_integer()):  # nor NaN, nor infinity
        found = step.tolist() if isinstance(step, torch.Tensor) else step
        raise ValueError(f"step of tensor {shape_text(tensor)} is {found!r}; expected a whole number >= 0")
    return int(count)


def _array(value: Any, dtype: np.dtype[Any], name: str) -> npt.NDArray[Any]:
    """A torch tensor, of any floating type and on any device, as a numpy array. Raises TypeError for anything else."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a tensor")
    if not value.is_floating_point() or value.layout is not torch.strided:
        raise TypeError(f"{name} is {value.dtype}, {value.layout}; expected a dense tensor of a floating type")
    wanted = torch.float64 if dtype.itemsize == 8 else torch.float32
    array: npt.NDArray[Any] = value.detach().to(device="cpu", dtype=wanted).numpy()
    return array
