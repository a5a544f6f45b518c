"""Parameters of a torch program bound to a run: made, resumed, extended, edited, stepped."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gradwire.client.connection import Server
from gradwire.client.errors import LayoutMismatch
from gradwire.client.optimizers.optimizer import Optimizer
from gradwire.client.optimizers.param_group import ParamGroup
from gradwire.client.options import Receipt
from gradwire.client.run import Run
from gradwire.client.torch import groups as torch_groups
from gradwire.client.torch.state import counts, initial_values, run_state, tensor_state, tensor_states
from gradwire.client.torch.state_view import States
from gradwire.client.torch.tensors import Array, RemoteTensor, as_array, put
from gradwire.v1 import run_pb2

ParamGroups = Sequence[dict[str, Any]]

_POLICY = "NON_FINITE_POLICY_"


class Binding:
    """One run and the parameters that it updates, in layout order.

    Args:
        param_groups: as torch has them; those without parameters are no groups of the run.
        optimizer: the preset that names the class of the update rule.
        creation: further arguments of `Server.create_run`.

    Raises as `Server.create_run` does, and ValueError where there is no parameter at all.
    """

    def __init__(
        self, server: Server, param_groups: ParamGroups, optimizer: Optimizer, creation: Mapping[str, Any]
    ) -> None:
        groups = members_of(param_groups)
        if not groups:
            raise ValueError("the parameter groups are all empty; expected at least one parameter")
        self.tensors = [RemoteTensor(name, param) for name, param in _names(groups.values())]
        values = dict(creation.get("values", {}))
        members = iter(self.tensors)
        parts = []
        for group in groups.values():
            arrays = {}
            for tensor in itertools.islice(members, len(group["params"])):
                arrays[tensor.name] = values[tensor.name] if tensor.name in values else as_array(tensor.param)
            parts.append(ParamGroup(arrays, **torch_groups.hyperparameters(group)))
        params = [tensor.param for tensor in self.tensors]
        doubles = any(param.dtype is torch.float64 for param in params)
        arguments = {
            "dtype": "float64" if doubles else "float32",
            **_encodings(params),
            **{key: value for key, value in creation.items() if key != "values"},
        }
        self.run: Run = server.create_run(params=parts, optimizer=optimizer, **arguments)
        self.run._trained_elsewhere = True
        # Updates of another process (Hogwild) get lost only here: those between steps are edits like others.
        self._shared = [tensor for tensor in self.tensors if tensor.param.is_cpu and tensor.param.is_shared()]
        self._values = {name: torch.from_numpy(values) for name, values in self.run.params.items()}
        # Whether what comes back is all that the server has, or rounded on the way.
        self._exact = arguments.get("parameter_encoding") in (None, str(self.run.dtype))
        self._sizes = [len(group["params"]) for group in groups.values()]
        self._choices = [torch_groups.choices(group) for group in groups.values()]
        self._in_force = [torch_groups.numbers(group) for group in groups.values()]
        self._behind = False  # a step was interrupted between the server and the parameters
        self._refreshes = self.run.refreshes
        self.wrote = False
        """Whether the last step had edits to write."""

    def resume(self, param_groups: ParamGroups) -> None:
        """Puts what the run has into the parameters and the groups. Raises LayoutMismatch for another optimizer."""
        groups = members_of(param_groups)
        theirs_all = self.run.describe().spec.groups
        for (index, group), theirs in zip(groups.items(), theirs_all, strict=True):
            try:
                torch_groups.check_same_optimizer(index, group, theirs)
                torch_groups.check_choices(
                    index, torch_groups.choices(group), torch_groups.choices_of(theirs), "here; the run has"
                )
            except ValueError as error:
                raise LayoutMismatch(f"run {self.run.name!r} exists with another optimizer: {error}") from None
        for group, theirs in zip(groups.values(), theirs_all, strict=True):
            torch_groups.adopt(group, theirs)
        self._in_force = [torch_groups.numbers(group) for group in groups.values()]
        self._take(self.tensors)

    # --- steps ---------------------------------------------------------------------------------------------------

    def gradients(self) -> dict[str, Array]:
        """Those that there are. Raises ValueError or TypeError for parameters and gradients that do not fit."""
        for tensor in self.tensors:
            tensor.check()
        return {tensor.name: array for tensor in self.tensors if (array := tensor.gradient()) is not None}

    def has(self, param_groups: ParamGroups) -> bool:
        """Whether the groups hold the run's parameters, in its order."""
        params = [id(param) for group in param_groups for param in group["params"]]
        return (
            params == [id(tensor.param) for tensor in self.tensors]
            and [len(group["params"]) for group in members_of(param_groups).values()] == self._sizes
        )

    def overrides(self, param_groups: ParamGroups) -> dict[int, dict[str, Any]]:
        """What has changed in the groups since the last step. Raises ValueError for what cannot change."""
        members = members_of(param_groups)
        if not self.has(param_groups):
            raise ValueError(
                "param_groups hold other parameters than the run was made for; add_param_group adds some, "
                "and to put others in their place needs a new optimizer"
            )
        overrides = {}
        for index, (number, group) in enumerate(members.items()):
            wanted = torch_groups.checked_numbers(group)
            torch_groups.check_choices(number, group, self._choices[index], "now; the run was made with")
            changed = {key: value for key, value in wanted.items() if self._in_force[index].get(key) != value}
            if changed:
                overrides[index] = changed
        return overrides

    def step(
        self,
        gradients: Mapping[str, Array],
        overrides: Mapping[int, Mapping[str, Any]],
        ahead: Collection[str],
        weight: float = 1.0,
    ) -> Receipt:
        """One step on the server; then the parameters take the new values."""
        behind, self._behind = self._behind, True
        try:
            receipt = self._send(gradients, overrides, ahead, weight)
        except BaseException:
            for known in self._in_force:
                known.clear()  # whether the overrides took effect is not known: the next step says all of them
            raise
        for index, changed in overrides.items() if receipt.applied else ():
            self._in_force[index].update(changed)
        everything = behind or self.run.refreshes != self._refreshes
        taken = self.tensors if everything else self._answered(gradients)
        chosen = set(taken) if self._shared else ()
        lost = any(tensor.edited for tensor in self._shared if tensor in chosen)
        self._take(taken)
        if lost:
            warnings.warn(
                "parameters in shared memory were changed during a step, by another process perhaps; the step's result "
                "takes the place of that. One process at a time may step parameters",
                RuntimeWarning,
                stacklevel=2,
            )
        return receipt

    def _send(
        self,
        gradients: Mapping[str, Array],
        overrides: Mapping[int, Mapping[str, Any]],
        ahead: Collection[str],
        weight: float,
    ) -> Receipt:
        return self.run.step(gradients, overrides=overrides, ahead=ahead, weight=weight)

    def _answered(self, gradients: Mapping[str, Array]) -> list[RemoteTensor]:
        """Those that the answer to these gradients holds."""
        return [tensor for tensor in self.tensors if tensor.name in gradients]

    @property
    def edited(self) -> bool:
        """Whether there may be something for `write_edits`."""
        return any(tensor.edited for tensor in self.tensors)

    def write_edits(self) -> None:
        """Sends parameters that were changed since they were last equal to the server's.

        An element that holds what the last step gave it stays what it is on the server, with the digits that the
        parameter's own type does not have: clamping bfloat16 parameters after each step must not round their masters.
        """
        edited = [tensor for tensor in self.tensors if tensor.edited]
        for tensor in edited:
            tensor.check()
        values = {tensor.name: as_array(tensor.param) for tensor in edited}
        if edited and not self._behind and not self.run.stale:  # else it is not known what the last step gave
            changed = {tensor.name: tensor.differences(self.run.params[tensor.name]) for tensor in edited}
            values = {name: value for name, value in values.items() if changed[name].any()}
            if any(not changed[name].all() for name in values):
                masters = self.run.params if self._exact else self.run.read()
                values = {name: np.where(changed[name], value, masters[name]) for name, value in values.items()}
        if values:
            self.run.write(values, partial=True)
        for tensor in edited:
            tensor.note()
        self.wrote = bool(values)

    def _take(self, tensors: Sequence[RemoteTensor]) -> None:
        put(tensors, [self._values[tensor.name] for tensor in tensors])
        self._behind = False
        self._refreshes = self.run.refreshes

    # --- state ---------------------------------------------------------------------------------------------------

    def states(self) -> States:
        """The state of each parameter that was stepped, in torch's words; 16-bit parameters have it in float32."""
        states = {}
        entries = tensor_states(self.run, self.run.describe().spec.groups)
        for tensor, entry in zip(self.tensors, entries, strict=True):
            if entry is not None:
                dtype = tensor.dtype if tensor.dtype is torch.float64 else torch.float32
                states[tensor.param] = {
                    k: v if k == "step" else v.to(device=tensor.param.device, dtype=dtype) for k, v in entry.items()
                }
        return states

    def empty_states(self) -> States:
        """What the server has of parameters that were never stepped."""
        specs = self.run.describe().spec.groups
        states = {}
        for tensor, layout in zip(self.tensors, self.run.layout.tensors, strict=True):
            dtype = tensor.dtype if tensor.dtype is torch.float64 else torch.float32
            begun = initial_values(specs[layout.group])
            slots = {k: torch.full_like(tensor.param, v, dtype=dtype) for k, v in begun.items()}
            states[tensor.param] = {**({"step": torch.tensor(0.0)} if counts(specs[layout.group]) else {}), **slots}
        return states

    def write_states(self, states: States) -> None:
        """Puts these parameters' states on the server; the others keep theirs, and the run its step.

        Raises ValueError or TypeError for one that does not fit: nothing is sent then.
        """
        if not states:
            return
        specs = self.run.describe().spec.groups
        wanted = {}
        for tensor, layout in zip(self.tensors, self.run.layout.tensors, strict=True):
            if tensor.param in states:
                wanted[layout.name] = tensor_state(self.run, layout, specs[layout.group], states[tensor.param])
        found = self.run.state_dict()
        theirs = found["tensors"]
        if any(
            not np.array_equal(part, theirs[name][key]) for name, parts in wanted.items() for key, part in parts.items()
        ):
            found["tensors"].update(wanted)
            found["step"] = max(found["step"], *(parts["step"] for parts in wanted.values()))
            self.run.load_state_dict(found)

    def load(self, state: Mapping[Any, Any], param_groups: ParamGroups) -> None:
        """Puts a state of torch's on the server, whole or not at all. Raises ValueError where it does not fit."""
        groups = self._checked(param_groups)
        specs = self.run.describe().spec.groups
        packed = run_state(self.run, specs, {"state": state, "param_groups": groups})
        if packed["step"] or self.run.step_count:  # not zeros over zeros
            self.run.load_state_dict(packed)

    def _checked(self, param_groups: ParamGroups) -> list[dict[str, Any]]:
        """The groups of a state, where they are of this optimizer. Raises ValueError."""
        groups = members_of(param_groups)
        for index, (number, group) in enumerate(groups.items()):
            torch_groups.check_choices(number, group, self._choices[index], "in the state; this optimizer has")
        return list(groups.values())

    def grown(
        self, server: Server, param_groups: ParamGroups, optimizer: Optimizer, creation: Mapping[str, Any]
    ) -> Binding:
        """A binding with further groups, whose run has taken the place of this one, whole.

        The tensors that were there keep their values and state to the last bit, and a run that was resumed its own
        clipping.
        """
        self.write_edits()
        state, values, spec = self.run.state_dict(), self.run.read(), self.run.describe().spec
        groups = members_of(param_groups).values()
        specs = [optimizer.replace(torch_groups.hyperparameters(group)).to_group() for group in groups]
        slots = dict.fromkeys(slot for spec in specs for slot in initial_values(spec))
        known = {tensor.param: tensor.name for tensor in self.tensors}
        begun = {id(p): initial_values(s) for group, s in zip(groups, specs, strict=True) for p in group["params"]}
        tensors: dict[str, Any] = {}
        kept = {}
        for name, param in _names(groups):
            values_of = {slot: np.full(tuple(param.shape), begun[id(param)].get(slot, 0.0)) for slot in slots}
            tensors[name] = {"step": 0, **values_of}
            if param in known:
                tensors[name].update(state["tensors"][known[param]])
                kept[name] = values[known[param]]
        more = {
            "on_existing": "replace",
            "clip_norm": spec.clip_norm if spec.HasField("clip_norm") else None,
            "clip_value": spec.clip_value if spec.HasField("clip_value") else None,
            "non_finite": run_pb2.NonFinitePolicy.Name(spec.non_finite_policy).removeprefix(_POLICY).lower(),
            "state": {"step": state["step"], "tensors": tensors},
            "values": kept,
        }
        new = Binding(server, param_groups, optimizer, {**creation, **more})
        new._behind = self._behind
        self.run.close()
        return new


def members_of(param_groups: ParamGroups) -> dict[int, dict[str, Any]]:
    """The groups that the run has, those with parameters, under their numbers in ``param_groups``."""
    return {number: group for number, group in enumerate(param_groups) if group["params"]}


def _names(groups: Iterable[dict[str, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter with its name in the run: its own where there are names, made unique, else its number."""
    seen: set[str] = set()
    for group in groups:
        for name, param in zip(group.get("param_names", [""] * len(group["params"])), group["params"], strict=True):
            number = len(seen)
            while not name or name in seen:
                name, number = f"{name or 'param'}_{number}", number + 1
            seen.add(name)
            yield name, param


def _encodings(params: Sequence[torch.Tensor]) -> dict[str, str]:
    """Where all parameters have the same 16 bits, so do their gradients, and no more needs to travel."""
    names = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
    dtypes = {param.dtype for param in params}
    name = names.get(dtypes.pop()) if len(dtypes) == 1 else None
    return {} if name is None else {"gradient_encoding": name, "parameter_encoding": name}
