"""Optimizer state of a run to and from ``torch.optim.Adam``, ``SGD`` and ``Adagrad``.

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
from gradwire.client.torch.groups import message_of
from gradwire.client.torch.words import words_in
from gradwire.v1 import run_pb2
from gradwire.wire.layout import TensorLayout, shape_text

_LARGEST_FLOAT32_STEP = 2**24
"""torch counts steps in float32, which holds whole numbers up to here."""


def state_dict(run: Run) -> dict[str, Any]:
    """The run's optimizer state as ``state_dict()`` of torch's optimizer of the same kind has it.

    The hyperparameters are those in force: the ``lr`` of a schedule is its lr0, and what torch has no word for (bounds,
    epsilon-hat form, no bias correction, schedules) stays behind. Tensors that have never been stepped have no state.

    Raises ValueError where the same numbers would mean something else to torch: a maximum of the corrected moment, a
    weight decay that does not scale with lr, an optimizer that torch does not have.
    """
    groups = _groups(run)
    state = {index: entry for index, entry in enumerate(tensor_states(run, groups)) if entry is not None}
    param_groups = []
    for number, group in enumerate(groups):
        members = [index for index, tensor in enumerate(run.layout.tensors) if tensor.group == number]
        param_groups.append({**_hyperparameters(number, group), "params": members})
    return {"state": state, "param_groups": param_groups}


def load_state_dict(run: Run, torch_state: Mapping[str, Any]) -> None:
    """Puts the state of torch's optimizer into a run, whole or not at all. Tensors without state start at t = 0.

    Parameters and hyperparameters stay the run's own: see `Run.write`, and ``lr`` and ``overrides`` of `Run.step`. The
    run's step becomes the largest t; ``SGD`` counts none, so there it stays, and a tensor with a buffer is at t = 1.

    Raises ValueError for another number of groups or tensors, another shape, or a state of the other variant (with
    ``max_exp_avg_sq`` where the group has no amsgrad, or without), TypeError for what is no tensor or no state at all.
    Nothing has been sent then.
    """
    run.load_state_dict(run_state(run, _groups(run), torch_state))


def tensor_states(run: Run, groups: Sequence[run_pb2.Group]) -> list[dict[str, Any] | None]:
    """Each tensor's state in torch's words, in layout order; None: it has never been stepped."""
    states: list[dict[str, Any] | None] = []
    for tensor, parts in zip(run.layout.tensors, _parts(run), strict=True):
        t, group = parts["step"], groups[tensor.group]
        slots = {slot: torch.from_numpy(parts[slot].copy()) for slot in initial_values(group)}
        begun_at_once = group.HasField("adagrad")  # torch gives it its state before the first step
        if not slots or (t == 0 and not begun_at_once):
            states.append(None)
            continue
        counter = torch.float32 if t <= _LARGEST_FLOAT32_STEP else torch.float64
        states.append({**({"step": torch.tensor(float(t), dtype=counter)} if counts(group) else {}), **slots})
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


def run_state(run: Run, groups: Sequence[run_pb2.Group], torch_state: Mapping[str, Any]) -> dict[str, Any]:
    """torch's state as `Run.load_state_dict` takes it. Raises ValueError and TypeError as `load_state_dict` does."""
    check_parts(torch_state)
    indices = _indices(run, groups, torch_state["param_groups"])
    states: Mapping[Any, Mapping[str, Any]] = torch_state["state"]
    unknown = [key for key in states if key not in indices]
    if unknown:
        raise ValueError(f"the state names parameters {unknown[:5]} that no parameter group has")
    tensors = {}
    for index, tensor in zip(indices, run.layout.tensors, strict=True):
        tensors[tensor.name] = tensor_state(run, tensor, groups[tensor.group], states.get(index) or {})
    step = max(parts["step"] for parts in tensors.values())
    return {"step": step if all(map(counts, groups)) else max(step, run.step_count), "tensors": tensors}


def _groups(run: Run) -> list[run_pb2.Group]:
    groups = list(run.describe().spec.groups)
    for number, group in enumerate(groups):
        message_of(group)
        if group.adam.maximum_of == run_pb2.Adam.MAXIMUM_OF_BIAS_CORRECTED:
            raise ValueError(
                f"group {number} keeps the maximum of the bias-corrected moment; torch.optim.Adam that of the raw one"
            )
    return groups


def initial_values(group: run_pb2.Group) -> dict[str, float]:
    """The slots of a group's tensors in torch's order, and what each begins with."""
    if group.HasField("sgd"):
        return {"momentum_buffer": 0.0} if group.sgd.momentum else {}
    if group.HasField("adagrad"):
        return {"sum": group.adagrad.initial_accumulator_value}
    return dict.fromkeys(("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group.adam.amsgrad else ())), 0.0)


def counts(group: run_pb2.Group) -> bool:
    """Whether torch counts a tensor's steps."""
    return not group.HasField("sgd")


def _parts(run: Run) -> list[dict[str, Any]]:
    tensors = run.state_dict()["tensors"]
    return [tensors[tensor.name] for tensor in run.layout.tensors]


def _hyperparameters(number: int, whole: run_pb2.Group) -> dict[str, Any]:
    """A group as torch's ``param_groups`` have it, without ``params``."""
    words, group = words_in(whole), whole.adam
    if words is not None:
        return words.param_group(message_of(whole))
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


def _indices(run: Run, groups: Sequence[run_pb2.Group], param_groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """torch's index of each tensor, in layout order. Raises ValueError where the groups are not the run's."""
    found = [len(group["params"]) for group in param_groups]
    expected = [sum(tensor.group == number for tensor in run.layout.tensors) for number in range(run.layout.groups)]
    if found != expected:
        raise ValueError(f"the state has parameter groups of {found} tensors; run {run.name!r} has {expected}")
    for number, (theirs, ours) in enumerate(zip(param_groups, groups, strict=True)):
        words, amsgrad = words_in(ours), ours.adam.amsgrad
        missing = [] if words is None else words.missing(theirs)
        if words is not None and missing:
            raise ValueError(f"group {number} of the state has no {', '.join(missing)}, which {words.title} has")
        if words is None and bool(theirs.get("amsgrad", False)) != amsgrad:
            raise ValueError(f"group {number} of the state has amsgrad={not amsgrad}; the run's has the opposite")
    return [index for group in param_groups for index in group["params"]]


def tensor_state(run: Run, tensor: TensorLayout, group: run_pb2.Group, state: Mapping[str, Any]) -> dict[str, Any]:
    """One tensor's state with all of the run's slots. Raises ValueError where torch's does not fit."""
    slots = initial_values(group)
    if not state or list(state.values()) == [None]:  # older versions of torch keep a buffer that is None
        return {"step": 0, **{slot: np.full(tensor.shape, slots.get(slot, 0.0), run.dtype) for slot in run.slots}}
    expected = {*slots, "step"} if counts(group) else {*slots}
    if set(state) != expected:
        raise ValueError(f"the state of tensor {shape_text(tensor)} has {sorted(state)}; expected {sorted(expected)}")
    parts: dict[str, Any] = {"step": _whole(state["step"], tensor) if counts(group) else 1}
    for slot in run.slots:
        # A group leaves alone what it does not use, in a run that keeps it for other groups.
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
